-- PUT <base>/<run>/<thread>/<n>: a unique key and a random body of its own slice every time.
-- Arguments: run, body bytes, query, copypool write ids (1 or 0), then header lines "Name: value".
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(arguments)
  run, size, query = arguments[1], tonumber(arguments[2]), arguments[3]
  write_ids = arguments[4] == "1"
  headers = {}
  for index = 5, #arguments do
    local name, value = arguments[index]:match("^(%S+): (.*)$")
    headers[name] = value
  end
  local source = io.open("/dev/urandom", "rb")
  pool = source:read(1048576 + size)
  local seed = 0
  for index = 1, 4 do seed = seed * 256 + pool:byte(index) end
  salt = string.format("%08x", seed)
  source:close()
  math.randomseed(seed)
  base = wrk.path
  count = 0
end

function request()
  count = count + 1
  if write_ids then headers["Copypool-Write-Id"] = salt .. string.format("%08x", count) end
  local start = math.random(1, 1048576)
  local path = string.format("%s/%s/%d/%d%s", base, run, number, count, query)
  return wrk.format("PUT", path, headers, pool:sub(start, start + size - 1))
end

dofile(os.getenv("BENCH_WRK_DONE"))
