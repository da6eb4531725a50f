//! Folders and archives with adapters, well-formed and hostile.

use std::io::{Seek as _, Write as _};
use std::os::unix::fs::symlink;

use super::*;

/// Does `work` without letting anybody go first.
fn at_once<T>(work: impl FnOnce(&mut Pieces<'_>) -> T) -> T {
    work(&mut Pieces::new(&mut |_| {}))
}

/// What one entry of an archive is made of.
struct Entry<'a> {
    name: &'a str,
    kind: EntryType,
    content: &'a [u8],
}

fn file<'a>(name: &'a str, content: &'a [u8]) -> Entry<'a> {
    Entry { name, kind: EntryType::Regular, content }
}

fn archive(entries: &[Entry<'_>]) -> File {
    let mut bytes = Vec::new();
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        // Written as it is: the library would refuse the names that are tried here.
        header.as_old_mut().name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_size(entry.content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(entry.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    of_bytes(&bytes)
}

fn of_bytes(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file.rewind().expect("rewound");
    file
}

fn refusal<T: std::fmt::Debug>(read: Result<T>) -> String {
    match read {
        Err(Error::Source(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_archive_of_the_two_files_is_read_whatever_their_order() {
    let expected = PeftFiles { config: b"{}".to_vec(), weights: vec![7; 1000] };
    let note = Entry { name: "PaxHeaders/x", kind: EntryType::XHeader, content: b"20 mtime=1.5\n" };
    let folder = Entry { name: "./", kind: EntryType::Directory, content: b"" };
    for entries in [
        vec![file(CONFIG, b"{}"), file(WEIGHTS, &[7; 1000])],
        vec![folder, file("./adapter_model.safetensors", &[7; 1000]), note, file("./adapter_config.json", b"{}")],
    ] {
        assert_eq!(at_once(|pieces| read_archive(archive(&entries), 1000, pieces)).expect("an adapter"), expected);
    }
}

#[test]
fn an_archive_of_anything_else_is_refused() {
    let (config, weights) = (file(CONFIG, b"{}"), file(WEIGHTS, &[7; 1000]));
    let odd = |kind| Entry { name: CONFIG, kind, content: b"" };
    let long_name = Entry { name: "././@LongLink", kind: EntryType::GNULongName, content: &[b'a'; 600] };
    let long = vec![b'a'; 70_000];
    let long_note = Entry { name: "x", kind: EntryType::XHeader, content: &long };
    for (entries, expected) in [
        (vec![config], "no adapter_model.safetensors"),
        (vec![weights], "no adapter_config.json"),
        (vec![], "no adapter_config.json"),
        (vec![file(CONFIG, b"{}"), file(CONFIG, b"{}")], "twice"),
        (vec![file("../adapter_config.json", b"{}")], "must hold"),
        (vec![file("/etc/passwd", b"{}")], "must hold"),
        (vec![file("folder/adapter_config.json", b"{}")], "must hold"),
        (vec![file("README.md", b"")], "must hold"),
        (vec![odd(EntryType::Symlink)], "not a plain file"),
        (vec![odd(EntryType::Link)], "not a plain file"),
        (vec![odd(EntryType::Fifo)], "not a plain file"),
        (vec![odd(EntryType::Directory)], "not a plain file"),
        (vec![odd(EntryType::GNUSparse)], "not a plain file"),
        (vec![long_name], "not a plain file"),
        (vec![long_note], "not a plain file"),
        (vec![file(WEIGHTS, &[7; 1001])], "larger than 1000 bytes"),
        (vec![file(CONFIG, &vec![b' '; (1 << 20) + 1])], "larger than 1048576 bytes"),
        ((0..40).map(|_| Entry { name: "./", kind: EntryType::Directory, content: b"" }).collect(), "16"),
    ] {
        let message = refusal(at_once(|pieces| read_archive(archive(&entries), 1000, pieces)));
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    let mut cut = Vec::new();
    archive(&[file(CONFIG, b"{}"), file(WEIGHTS, &[7; 1000])]).read_to_end(&mut cut).expect("bytes");
    for bytes in [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0][..], b"PK\x03\x04", &[b'a'; 5000], &cut[..1600], &cut[..700]] {
        refusal(at_once(|pieces| read_archive(of_bytes(bytes), 1000, pieces)));
    }
}

/// A data folder with an adapter in `mine`, and one outside of it.
struct Fixture {
    data: tempfile::TempDir,
    outside: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { data: folder(), outside: folder() };
        put(&fixture.data.path().join("mine"));
        put(fixture.outside.path());
        fixture
    }

    fn read(&self, path: impl AsRef<Path>) -> Result<PeftFiles> {
        let folder = Folder::open(self.data.path(), path.as_ref(), 1000)?;
        at_once(|pieces| folder.read(pieces))
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn put(folder: &Path) {
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join(CONFIG), "{}").expect("a file");
    std::fs::write(folder.join(WEIGHTS), [7; 10]).expect("a file");
}

#[test]
fn a_folder_below_the_data_folder_is_read_by_its_whole_path_or_the_rest_of_it() {
    let fixture = Fixture::new();
    let expected = PeftFiles { config: b"{}".to_vec(), weights: vec![7; 10] };
    assert_eq!(fixture.read(fixture.data.path().join("mine")).expect("an adapter"), expected);
    assert_eq!(fixture.read("mine").expect("an adapter"), expected);
    // A link that stays inside, as download caches have them.
    symlink(fixture.data.path().join("mine"), fixture.data.path().join("link")).expect("a link");
    assert_eq!(fixture.read("link").expect("an adapter"), expected);
}

#[test]
fn nothing_outside_the_data_folder_is_read() {
    let fixture = Fixture::new();
    symlink(fixture.outside.path(), fixture.data.path().join("away")).expect("a link");
    let half = fixture.data.path().join("half");
    std::fs::create_dir(&half).expect("a folder");
    std::fs::write(half.join(CONFIG), "{}").expect("a file");
    symlink(fixture.outside.path().join(WEIGHTS), half.join(WEIGHTS)).expect("a link");
    for path in [
        fixture.outside.path().to_path_buf(),
        PathBuf::from("away"),
        PathBuf::from("half"),
        PathBuf::from("mine/../mine"),
        PathBuf::from("../etc"),
        PathBuf::from("/etc"),
        PathBuf::from("/"),
        PathBuf::from("."),
        PathBuf::from("mine\0"),
        PathBuf::from(""),
        fixture.data.path().to_path_buf(),
    ] {
        refusal(fixture.read(&path));
    }
    // Whether a place outside exists is not told.
    let (there, not_there) = (refusal(fixture.read("/etc")), refusal(fixture.read("/no/such/place")));
    assert_eq!(there, not_there);
}

#[test]
fn the_servers_own_folders_are_not_read() {
    let fixture = Fixture::new();
    let own = fixture.data.path().join("blobs/adapters/0a");
    put(&own);
    symlink(&own, fixture.data.path().join("own")).expect("a link");
    let linked = fixture.data.path().join("linked");
    std::fs::create_dir(&linked).expect("a folder");
    symlink(own.join(CONFIG), linked.join(CONFIG)).expect("a link");
    symlink(own.join(WEIGHTS), linked.join(WEIGHTS)).expect("a link");
    for path in ["blobs/adapters/0a", "own", "linked"] {
        refusal(fixture.read(path));
    }
}

#[test]
fn what_changes_after_it_was_judged_is_not_read() {
    let fixture = Fixture::new();
    let mine = fixture.data.path().join("mine");
    let open = || Folder::open(fixture.data.path(), &mine, 1000).expect("a folder");
    // Another file, or a link to one outside, under the same name: what was opened is read.
    for replace in
        [|path: &Path, _: &Path| std::fs::write(path, "other"), |path: &Path, outside: &Path| symlink(outside, path)]
    {
        put(&mine);
        let folder = open();
        for name in [CONFIG, WEIGHTS] {
            std::fs::remove_file(mine.join(name)).expect("removed");
            replace(&mine.join(name), &fixture.outside.path().join(name)).expect("another one");
        }
        let files = at_once(|pieces| folder.read(pieces)).expect("an adapter");
        assert_eq!((files.config, files.weights), (b"{}".to_vec(), vec![7; 10]));
        for name in [CONFIG, WEIGHTS] {
            std::fs::remove_file(mine.join(name)).expect("removed");
        }
    }
    // The file itself grows beyond what was allowed.
    put(&mine);
    let folder = open();
    std::fs::write(mine.join(WEIGHTS), [7; 1001]).expect("a longer file");
    assert!(refusal(at_once(|pieces| folder.read(pieces))).contains("larger than 1000 bytes"));
}

#[test]
fn missing_oversized_and_odd_files_are_refused() {
    let fixture = Fixture::new();
    assert!(matches!(fixture.read("none"), Err(Error::FolderNotFound(_))));
    let weights = fixture.data.path().join("mine").join(WEIGHTS);
    std::fs::write(&weights, [7; 1001]).expect("a file");
    assert!(refusal(fixture.read("mine")).contains("larger than 1000 bytes"));
    std::fs::remove_file(&weights).expect("removed");
    assert!(refusal(fixture.read("mine")).contains("no adapter_model.safetensors"));
    // A pipe would keep its reader waiting for ever.
    nix::unistd::mkfifo(&weights, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    assert!(refusal(fixture.read("mine")).contains("not a file"));
    std::fs::remove_file(&weights).expect("removed");
    std::fs::create_dir(&weights).expect("a folder");
    assert!(refusal(fixture.read("mine")).contains("not a file"));
    assert!(matches!(fixture.read(format!("mine/{CONFIG}")), Err(Error::Source(_))));
}
