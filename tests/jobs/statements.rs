//! SQL of `src/jobs/sql`: the database accepts every statement, and the program uses every file.

use std::path::Path;

use crate::postgres::TestDatabase;
use sqlx::{Executor as _, SqlSafeStr as _};

#[tokio::test]
async fn the_database_can_prepare_every_statement() {
    let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/jobs");
    let included = std::fs::read_to_string(jobs.join("sql.rs")).unwrap();
    let database = TestDatabase::new().await;
    let mut count = 0;
    for entry in std::fs::read_dir(jobs.join("sql")).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(included.contains(&format!("include_str!(\"sql/{file}\")")), "src/jobs/sql.rs does not include {file}");
        let statement = sqlx::AssertSqlSafe(std::fs::read_to_string(&path).unwrap()).into_sql_str();
        let prepared = database.store.pool().prepare(statement).await;
        assert!(prepared.is_ok(), "{file}: {}", prepared.unwrap_err());
        count += 1;
    }
    assert_eq!(count, included.matches("include_str!(").count(), "a statement is included twice");
}
