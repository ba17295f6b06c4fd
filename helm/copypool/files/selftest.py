"""What `helm test` runs: a file is stored, copied, found to be where policy says, read from its copies alone,
read back, and deleted.

Every step is a command that an operator could type. The namespace `helm-test` stays, for the next time.
"""

import os
import secrets
import subprocess
import sys
import time

NAMESPACE = "helm-test"
TRY_AGAIN = 7  # exit code of a command that may be repeated
ALREADY = 6  # exit code of a command whose thing is there

deadline_s = time.monotonic() + float(os.environ["TIMEOUT_S"])


def copypool(*arguments: str, stdin: bytes = b"", accepted: tuple[int, ...] = (0,)) -> bytes:
    """Standard output of a command, repeated while the cluster says that it may be."""
    while True:
        left_s = max(deadline_s - time.monotonic(), 1.0)
        done = subprocess.run(["copypool", *arguments], input=stdin, capture_output=True, timeout=left_s, check=False)
        if done.returncode in accepted:
            print(f"ok  copypool {' '.join(arguments)}", flush=True)
            return done.stdout
        if done.returncode != TRY_AGAIN or time.monotonic() > deadline_s:
            sys.stdout.buffer.write(done.stdout + done.stderr)
            sys.exit(f"FAILED with exit code {done.returncode}: copypool {' '.join(arguments)}")
        time.sleep(1.0)


def main() -> None:
    """Exit code 0: all of it worked."""
    path = f"{NAMESPACE}/{secrets.token_hex(8)}"
    content = secrets.token_bytes(256 * 1024)
    copypool("namespace", "create", NAMESPACE, accepted=(0, ALREADY))
    copypool("put", "-", path, stdin=content)
    left_s = max(int(deadline_s - time.monotonic()), 1)
    copypool("--namespace", NAMESPACE, "wait", "--copied", "--timeout", str(left_s))
    copypool("explain", path)
    copypool("--namespace", NAMESPACE, "drill", "read-from-copies")
    if copypool("cat", path) != content:
        sys.exit("FAILED: what was read is not what was stored")
    copypool("rm", path)
    print("PASSED: stored, copied, read from copies alone, read back and deleted")


if __name__ == "__main__":
    main()
