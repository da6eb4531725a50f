"""What Hugging Face's own library makes of a cache: `cache.py read NAME` finds a snapshot without the network and prints
its folder, `cache.py fetch NAME` downloads one, `cache.py scan` prints the library's warnings about the cache. Run by
`test_pull.py`, with `HF_HOME` and `HF_ENDPOINT`."""

import sys

from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

command, *names = sys.argv[1:]
if command == "read":
    folder = snapshot_download(names[0], local_files_only=True)
    assert hf_hub_download(names[0], "config.json", local_files_only=True) == f"{folder}/config.json"
    print(folder)
elif command == "fetch":
    print(snapshot_download(names[0]))
elif command == "scan":
    print(*scan_cache_dir().warnings, sep="\n")
