//! Rebuilds when a migration is added or changed: `sqlx::migrate!` reads the folder, but cargo does not see that.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
