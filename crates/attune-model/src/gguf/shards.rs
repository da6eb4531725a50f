//! Models that are split into several files, `NAME-00001-of-00003.gguf` and so on: the first one holds the keys, and
//! each its own tensors.

use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use crate::{Error, Result};

/// Key of a shard's number, from 0.
const NUMBER: &str = "split.no";
/// Key of the number of shards.
const COUNT: &str = "split.count";
/// Key of the number of tensors in all shards.
const TENSORS: &str = "split.tensors.count";

/// Returns the paths of the shards beside the first one, at `path`; refuses another one than the first.
pub(super) fn others(path: &Path, metadata: &Metadata) -> Result<Vec<PathBuf>> {
    let count = metadata.size(COUNT)?.unwrap_or(0);
    if count <= 1 {
        return Ok(Vec::new());
    }
    let number = metadata.size(NUMBER)?.unwrap_or(0);
    let Some(base) = base(path, number, count) else {
        let wanted = format!("NAME{}", ending(number, count));
        return Err(metadata.fault(&format!("a shard of a model must keep its name, {wanted}")));
    };
    let shard = |number: usize| path.with_file_name(format!("{base}{}", ending(number, count)));
    if number != 0 {
        let first = shard(0);
        return Err(metadata.fault(&format!("this is shard {} of {count}: give {}", number + 1, first.display())));
    }
    let there = |shard: PathBuf| {
        let missing = format!("{}: the file is missing, one of the {count} shards of the model", shard.display());
        if shard.is_file() { Ok(shard) } else { Err(Error::Setup(missing)) }
    };
    (1..count).map(|number| there(shard(number))).collect()
}

/// Refuses a shard that says of itself that it is another one than shard `number`, from 0, of the model of `first`.
pub(super) fn check(shard: &Metadata, first: &Metadata, number: usize) -> Result<()> {
    let (said, count) = (shard.size(NUMBER)?, shard.size(COUNT)?);
    if said != Some(number) || count != first.size(COUNT)? {
        return Err(shard.fault(&format!("by its own keys the file is not shard {} of this model", number + 1)));
    }
    Ok(())
}

/// Refuses a model with another number of tensors than its first shard says.
pub(super) fn check_total(first: &Metadata, tensors: usize) -> Result<()> {
    match first.size(TENSORS)? {
        Some(wanted) if wanted != tensors => {
            Err(first.fault(&format!("the shards hold {tensors} tensors, and should hold {wanted}")))
        }
        _ => Ok(()),
    }
}

/// Returns true if `name` is that of another shard than the first one.
pub(crate) fn later_shard(name: &str) -> bool {
    let parts = || {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        Some([rest.rsplit_once('-')?.1, count])
    };
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    parts().is_some_and(|[number, count]| is_number(number) && is_number(count) && number != "00001")
}

fn ending(number: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}

fn base(path: &Path, number: usize, count: usize) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    Some(name.strip_suffix(&ending(number, count))?.to_owned())
}
