//! The private Postgres: it starts on any folder and for any user, keeps its data, is alone on its folder, and never
//! outlives its server for long.

#![allow(clippy::unwrap_used, reason = "a test that fails should panic")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use attune::store::postgres::PrivatePostgres;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

/// Creates a folder that the database's user can reach, also if the tests run as root.
fn open_folder() -> TempDir {
    let folder = TempDir::with_prefix_in("attune-test-", "/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

async fn execute(url: &str, sql: &'static str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn number(url: &str, sql: &'static str) -> i32 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
}

/// Reads the process id of the server in the cluster.
fn server_pid(cluster: &Path) -> i32 {
    let file = std::fs::read_to_string(cluster.join("postmaster.pid")).unwrap();
    file.lines().next().unwrap().trim().parse().unwrap()
}

fn runs(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}/cwd")).read_link().is_ok()
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

#[tokio::test]
async fn data_survives_a_restart_and_dropping_stops_the_server() {
    let folder = open_folder();
    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    execute(postgres.url(), "create table kept as select 7 as number").await;
    let (pid, cluster) = (server_pid(postgres.cluster()), postgres.cluster().to_owned());
    assert!(cluster.starts_with(folder.path().canonicalize().unwrap()));
    assert_eq!(std::fs::metadata(&cluster).unwrap().mode() & 0o777, 0o700, "others must not read the cluster");
    drop(postgres);
    assert!(!runs(pid), "the server must be gone when drop returns");
    assert!(!cluster.join("postmaster.pid").exists(), "it must have stopped cleanly");

    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    assert_eq!(number(postgres.url(), "select number from kept").await, 7);
    assert_eq!(
        number(
            postgres.url(),
            "select count(*)::int from pg_settings where (name, setting) in
        (('synchronous_commit', 'on'), ('fsync', 'on'), ('listen_addresses', ''))"
        )
        .await,
        3
    );
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_is_refused() {
    let folder = open_folder();
    let first = PrivatePostgres::start(folder.path()).await.unwrap();
    let error = PrivatePostgres::start(folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("another attune uses"), "{error}");
    assert_eq!(number(first.url(), "select 1").await, 1, "the first must not be disturbed");
}

#[tokio::test]
async fn the_socket_is_closed_to_other_users_and_its_path_is_short() {
    let long = open_folder();
    let folder = long.path().join("a-long-name-".repeat(12));
    let postgres = PrivatePostgres::start(&folder).await.unwrap();
    let socket_dir = socket_dir(&postgres);
    let metadata = std::fs::metadata(&socket_dir).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o700);
    assert_eq!(metadata.uid(), std::fs::metadata(postgres.cluster()).unwrap().uid());
    assert!(socket_dir.join(".s.PGSQL.5432").as_os_str().len() < 108);
    drop(postgres);
    assert!(!socket_dir.exists(), "nothing stays behind in /tmp");
}

/// Returns the place of the socket on `folder` after a first start, which ends before this returns.
async fn first_socket_dir(folder: &Path) -> PathBuf {
    let postgres = PrivatePostgres::start(folder).await.unwrap();
    execute(postgres.url(), "create table kept as select 7 as number").await;
    socket_dir(&postgres)
}

/// Makes `path` a folder as another user of the machine would; without root's rights, one that others can enter.
fn make_as_another_user(path: &Path) {
    std::fs::create_dir(path).unwrap();
    if is_root() {
        std::os::unix::fs::chown(path, Some(12_345), Some(12_345)).unwrap();
    } else {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
}

#[tokio::test]
async fn a_socket_folder_of_another_user_is_left_alone_and_the_one_instead_is_found_again() {
    let folder = open_folder();
    let taken = first_socket_dir(folder.path()).await;
    make_as_another_user(&taken);
    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    let instead = socket_dir(&postgres);
    assert_ne!(instead, taken);
    assert_eq!(std::fs::metadata(&instead).unwrap().mode() & 0o777, 0o700);
    assert!(instead.join(".s.PGSQL.5432").exists() && !taken.join(".s.PGSQL.5432").exists());
    assert_eq!(number(postgres.url(), "select number from kept").await, 7);
    let (url, started) = PrivatePostgres::attach_or_start(folder.path()).await.unwrap();
    assert!(started.is_none() && url == postgres.url(), "a command beside the server finds it: {url}");
    drop(postgres);
    assert!(taken.exists() && !instead.exists());

    let again = PrivatePostgres::start(folder.path()).await.unwrap();
    assert_eq!(socket_dir(&again), instead, "the choice is kept");
    drop(again);
    // A copy of the data folder is another cluster.
    let copy = open_folder();
    std::fs::copy(folder.path().join("postgres.socket"), copy.path().join("postgres.socket")).unwrap();
    assert_ne!(first_socket_dir(copy.path()).await, instead);
    std::fs::remove_dir(&taken).unwrap();
}

#[tokio::test]
async fn commands_never_connect_to_a_database_in_the_socket_folder_of_another_user() {
    let folder = open_folder();
    let taken = first_socket_dir(folder.path()).await;
    make_as_another_user(&taken);
    let trap = std::os::unix::net::UnixListener::bind(taken.join(".s.PGSQL.5432")).unwrap();
    trap.set_nonblocking(true).unwrap();
    let (url, started) = PrivatePostgres::attach_or_start(folder.path()).await.unwrap();
    assert!(started.is_some(), "a server of its own is started");
    assert_eq!(number(&url, "select number from kept").await, 7);
    assert_eq!(trap.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody may have knocked there");
    drop(started);
    std::fs::remove_dir_all(&taken).unwrap();
}

#[tokio::test]
async fn a_link_is_no_socket_folder_wherever_it_leads() {
    let folder = open_folder();
    let taken = first_socket_dir(folder.path()).await;
    let elsewhere = open_folder();
    let target = elsewhere.path().join("closed");
    std::fs::create_dir(&target).unwrap();
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&target, &taken).unwrap();
    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    assert_ne!(socket_dir(&postgres), taken);
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    drop(postgres);
    std::fs::remove_file(&taken).unwrap();
}

#[tokio::test]
async fn an_initialisation_that_was_killed_leaves_nothing_in_the_way() {
    let folder = open_folder();
    let draft = folder.path().join("postgres.new");
    std::fs::create_dir(&draft).unwrap();
    std::fs::write(draft.join("PG_VERSION"), "half a cluster").unwrap();
    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    assert_eq!(number(postgres.url(), "select 1").await, 1);
    assert!(!draft.exists());
}

#[tokio::test]
async fn a_cluster_of_another_major_version_is_refused_by_name() {
    let folder = open_folder();
    std::fs::create_dir(folder.path().join("postgres")).unwrap();
    std::fs::write(folder.path().join("postgres/PG_VERSION"), "9.6\n").unwrap();
    let error = PrivatePostgres::start(folder.path()).await.unwrap_err().to_string();
    assert!(error.contains("PostgreSQL 9.6") && error.contains("apt-get install postgresql-9.6"), "{error}");
}

#[tokio::test]
async fn a_folder_out_of_reach_of_the_databases_user_gets_a_state_folder_and_finds_it_again() {
    // Only root hands the cluster to another user.
    if !is_root() {
        return;
    }
    let folder = TempDir::with_prefix_in("attune-test-", "/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    let cluster = postgres.cluster().to_owned();
    assert!(!cluster.starts_with(folder.path()));
    execute(postgres.url(), "create table kept as select 7 as number").await;
    drop(postgres);
    // The decision stands even when the reason for it is gone.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    assert_eq!(postgres.cluster(), cluster);
    assert_eq!(number(postgres.url(), "select number from kept").await, 7);
    drop(postgres);
    std::fs::remove_dir_all(cluster.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn the_database_of_a_killed_server_is_stopped_and_its_data_kept() {
    let folder = open_folder();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serve_until_killed", "--ignored", "--nocapture"])
        .env("ATTUNE_TEST_FOLDER", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.find(|line| line.as_ref().unwrap().contains("server runs as")).unwrap().unwrap();
    let pid: i32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(runs(pid));
    child.kill().unwrap();
    child.wait().unwrap();

    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    assert!(!runs(pid), "the old server must be gone");
    assert_eq!(number(postgres.url(), "select number from kept").await, 7);
}

/// Helper process that [`the_database_of_a_killed_server_is_stopped_and_its_data_kept`] kills.
#[tokio::test]
#[ignore = "a helper of another test"]
async fn serve_until_killed() {
    let Some(folder) = std::env::var_os("ATTUNE_TEST_FOLDER") else { return };
    let postgres = PrivatePostgres::start(Path::new(&folder)).await.unwrap();
    execute(postgres.url(), "create table kept as select 7 as number").await;
    println!("\nserver runs as {}", server_pid(postgres.cluster()));
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_server_that_was_left_behind_is_taken_over() {
    let folder = open_folder();
    let (mut orphan, pid) = leave_a_server_behind(folder.path()).await;
    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    assert!(orphan.wait().unwrap().success(), "it must have been asked to stop, not killed");
    assert_ne!(server_pid(postgres.cluster()), pid);
    assert_eq!(number(postgres.url(), "select number from kept").await, 7);
}

/// Runs a server on the folder's cluster that is tied to no attune process.
async fn leave_a_server_behind(folder: &Path) -> (Child, i32) {
    let postgres = PrivatePostgres::start(folder).await.unwrap();
    execute(postgres.url(), "create table kept as select 7 as number").await;
    let cluster = postgres.cluster().to_owned();
    let binary = std::fs::read_link(format!("/proc/{}/exe", server_pid(&cluster))).unwrap();
    drop(postgres);
    let owner = std::fs::metadata(&cluster).unwrap();
    let mut command = Command::new(binary);
    command.arg("-D").arg(&cluster).arg("-k").arg(&cluster).args(["-c", "listen_addresses="]).stderr(Stdio::null());
    if is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let child = command.spawn().unwrap();
    let url = format!("postgres://attune@localhost/attune?host={}", cluster.display());
    let ready = async {
        while PgConnection::connect(&url).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), ready).await.unwrap();
    let pid = child.id() as i32;
    (child, pid)
}

#[tokio::test]
async fn a_pid_file_that_names_an_unrelated_process_harms_nobody() {
    let folder = open_folder();
    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    let cluster = postgres.cluster().to_owned();
    drop(postgres);
    // As after a crash of the machine, if another process has received the number: here, this test.
    std::fs::write(cluster.join("postmaster.pid"), format!("{}\n{}\n", std::process::id(), cluster.display())).unwrap();
    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    assert_eq!(number(postgres.url(), "select 1").await, 1);
}

#[tokio::test]
async fn a_server_process_that_dies_is_started_again() {
    let folder = open_folder();
    let postgres = PrivatePostgres::start(folder.path()).await.unwrap();
    execute(postgres.url(), "create table kept as select 7 as number").await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(server_pid(postgres.cluster())),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let answers = async {
        loop {
            if let Ok(mut connection) = PgConnection::connect(postgres.url()).await
                && let Ok(number) = sqlx::query_scalar("select number from kept").fetch_one(&mut connection).await
            {
                return number;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let number: i32 = tokio::time::timeout(Duration::from_mins(1), answers).await.unwrap();
    assert_eq!(number, 7);
}

fn socket_dir(postgres: &PrivatePostgres) -> PathBuf {
    postgres.url().split_once("host=").unwrap().1.into()
}
