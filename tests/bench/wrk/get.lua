-- GET of lines "path<TAB>Name: value" of a file, in random order.
-- Arguments: the file, then header lines for every request.
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(arguments)
  local headers = {}
  for index = 2, #arguments do
    local name, value = arguments[index]:match("^(%S+): (.*)$")
    headers[name] = value
  end
  requests = {}
  for line in io.lines(arguments[1]) do
    local path, name, value = line:match("^([^\t]+)\t?(%S*):? ?(.*)$")
    local own = {}
    for each, text in pairs(headers) do own[each] = text end
    if name ~= "" then own[name:gsub(":$", "")] = value end
    requests[#requests + 1] = wrk.format("GET", path, own)
  end
  math.randomseed(number + 1)
end

function request()
  return requests[math.random(1, #requests)]
end

dofile(os.getenv("BENCH_WRK_DONE"))
