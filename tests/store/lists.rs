//! Lists in pages: whole, without repeats, and at the same cost wherever a page begins.

use crate::postgres::TestDatabase;
use crate::support::ORG;
use attune::store::Store;
use sqlx::{Acquire as _, SqlSafeStr as _};

/// Reads all models that the organisation may use, in pages of `limit`.
async fn read(store: &Store, organization: &str, hidden: &[&str], limit: i64) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    loop {
        let (page, more) =
            store.usable_models(organization, hidden, names.last().map(String::as_str), limit).await.unwrap();
        assert!(page.len() as i64 <= limit);
        names.extend(page.into_iter().map(|model| model.name));
        if !more {
            return names;
        }
    }
}

#[tokio::test]
async fn models_are_listed_once_each_in_pages_that_meet_own_and_shared_ones_together() {
    let database = TestDatabase::new().await;
    // `shared-2` is also the name of a model of its own, `shared-3` of an older one of a third organisation.
    database
        .execute(
            "insert into fine_tuned_models (organization, name, base, adapter, created_at)
             select 'acme', 'own-' || n, 'demo', 'aa', to_timestamp(1000 + n / 2) from generate_series(1, 9) n
             union all select 'rival', 'shared-' || n, 'demo', 'aa', to_timestamp(1000 + n) from generate_series(1, 5) n
             union all values ('acme', 'shared-2', 'demo', 'aa', to_timestamp(2000)),
                              ('third', 'shared-3', 'demo', 'aa', to_timestamp(900)),
                              ('third', 'secret', 'demo', 'aa', to_timestamp(1))",
        )
        .await;
    for (owner, model) in [("rival", "shared-2"), ("rival", "shared-3"), ("rival", "shared-4"), ("third", "shared-3")] {
        database.store.grant(owner, model, &[ORG.into()]).await.unwrap();
    }
    database.execute("update model_permissions set accepted_at = now()").await;
    let expected = [
        "shared-3", "own-1", "own-2", "own-3", "own-4", "own-5", "own-6", "own-7", "own-8", "own-9", "shared-4",
        "shared-2",
    ];
    for limit in [1, 2, 5, 100] {
        assert_eq!(read(&database.store, ORG, &[], limit).await, expected, "in pages of {limit}");
    }
    let without: Vec<&str> = expected.iter().copied().filter(|name| *name != "own-4").collect();
    assert_eq!(read(&database.store, ORG, &["own-4"], 2).await, without);
    let (none, more) = database.store.usable_models(ORG, &[], Some("secret"), 5).await.unwrap();
    assert!(none.is_empty() && !more, "nothing follows a model that is not in the list");
    let named = database.store.usable_models_named(ORG, &["shared-3", "shared-2", "secret"]).await.unwrap();
    let owners: Vec<(&str, &str)> = named.iter().map(|model| (&*model.name, &*model.organization)).collect();
    assert_eq!(owners, [("shared-2", "acme"), ("shared-3", "third")]);
}

#[tokio::test]
async fn keys_are_listed_in_pages() {
    let database = TestDatabase::new().await;
    database
        .execute(
            "insert into api_keys (id, organization, hash, masked, created_at)
             select 'key_' || n, 'acme', sha256(n::text::bytea), 'x', to_timestamp(1000 + n)
               from generate_series(1, 10001) n",
        )
        .await;
    let (first, more) = database.store.keys(Some(ORG), None).await.unwrap();
    assert_eq!((first.len(), more), (10_000, true));
    let (rest, more) = database.store.keys(None, Some(&first[9_999].id)).await.unwrap();
    assert_eq!((rest.len(), rest[0].id.as_str(), more), (1, "key_10001", false));
}

/// Returns how many rows below the limit the statement read and threw away, with a plan for any parameters.
async fn wasted_rows(database: &TestDatabase, statement: &str, parameters: &str) -> i64 {
    let mut connection = database.store.pool().acquire().await.unwrap();
    let connection = connection.acquire().await.unwrap();
    let prepare = format!(
        "set plan_cache_mode = force_generic_plan; deallocate all; prepare page as {statement};
         set enable_seqscan = off; set enable_bitmapscan = off"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(prepare).into_sql_str()).execute(&mut *connection).await.unwrap();
    let explain = format!("explain (analyze, format json, timing off) execute page({parameters})");
    let plan: String = sqlx::Row::get::<serde_json::Value, _>(
        &sqlx::raw_sql(sqlx::AssertSqlSafe(explain).into_sql_str()).fetch_one(&mut *connection).await.unwrap(),
        0,
    )
    .to_string();
    sqlx::raw_sql("reset all; deallocate all").execute(&mut *connection).await.unwrap();
    // The numbers behind each "Actual Rows" and "Rows Removed by Filter": none may be of the size of the table.
    let counts = plan.split("\"Actual Rows\":").chain(plan.split("\"Rows Removed by Filter\":")).skip(1);
    counts.filter_map(|rest| rest.split([',', '}']).next()?.parse::<f64>().ok()).fold(0.0, f64::max) as i64
}

#[tokio::test]
async fn a_page_in_the_depth_of_a_list_reads_no_more_than_the_first() {
    let database = TestDatabase::new().await;
    database
        .execute(
            "begin;
             alter table jobs disable trigger user;
             insert into jobs (id, api, organization, spec, created_at)
             select 'id-' || n, 'fine_tuning_jobs', 'acme', '{}', to_timestamp(n) from generate_series(1, 20000) n;
             alter table jobs enable trigger user;
             insert into fine_tuned_models (organization, name, base, adapter, created_at)
             select 'acme', 'id-' || n, 'demo', 'aa', to_timestamp(n) from generate_series(1, 20000) n;
             commit",
        )
        .await;
    let sql = |name: &str| {
        let path = format!("{}/src/jobs/sql/{name}.sql", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    for after in ["null", "'id-10000'"] {
        for name in ["list_ascending", "list_descending"] {
            let parameters = format!("'acme', 'fine_tuning_jobs', {after}, 21, null, false");
            let rows = wasted_rows(&database, &sql(name), &parameters).await;
            assert!(rows <= 21, "{name} after {after}: {rows} rows");
        }
    }
    // The statement of models is in Rust: its pages are timed against each other, with a wide margin.
    let time = async |after: Option<&'static str>| {
        let mut fastest = std::time::Duration::MAX;
        for _ in 0..12 {
            let begin = std::time::Instant::now();
            assert_eq!(database.store.usable_models(ORG, &[], after, 20).await.unwrap().0.len(), 20);
            fastest = fastest.min(begin.elapsed());
        }
        fastest
    };
    let (first, deep) = (time(None).await, time(Some("id-19000")).await);
    assert!(deep < first * 5 + std::time::Duration::from_millis(5), "first {first:?}, deep {deep:?}");
}
