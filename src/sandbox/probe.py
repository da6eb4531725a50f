# Run once when the server starts, outside of the sandbox: tells where the interpreter keeps what it needs.
import json
import os
import sys
import sysconfig

for name in ("bz2", "ctypes", "decimal", "lzma", "sqlite3", "ssl", "zlib"):
    # Loaded for the libraries that they bring along.
    try:
        __import__(name)
    except ImportError:
        pass
with open("/proc/self/maps") as maps:
    mapped = {line.split(None, 5)[5].strip() for line in maps if len(line.split(None, 5)) == 6}
paths = sysconfig.get_paths()
told = {
    "version": [sys.version_info[0], sys.version_info[1], sys.version_info[2]],
    "executable": os.path.realpath("/proc/self/exe"),
    "mapped": sorted(path for path in mapped if path.startswith("/") and os.path.isfile(path)),
    "prefixes": sorted({sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}),
    "path": [path for path in sys.path if path]
    + [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib") if name in paths],
}
print(json.dumps(told))
