//! Copies what a folder of sentence-transformers says about vectors beside a model that is written anew. Called by
//! [`merge`](crate::merge).

use std::path::Path;

use super::folder::{TRANSFORMER, WHOLE};
use super::modules::{self, LIST, fault};
use crate::{Error, Result, python_json};

/// Copies the modules and settings of `folder`, if it has some, to the new model in the folder `to`.
pub(crate) fn copy(folder: &Path, to: &Path) -> Result<()> {
    let Some(modules) = modules::read(folder)? else { return Ok(()) };
    let Some((transformer, behind)) = modules.split_first() else { return Ok(()) };
    let file = folder.join(LIST);
    let mut list = python_json::read(&file)?.ok_or_else(|| fault(&file, "the file is gone"))?;
    // The model itself is written into the folder, wherever it was.
    list[0]["path"] = "".into();
    let written = to.join(LIST);
    std::fs::write(&written, format!("{list:#}")).map_err(Error::io(format!("write {}", written.display())))?;
    copy_file(folder, to, WHOLE)?;
    TRANSFORMER.iter().try_for_each(|name| copy_file(&transformer.folder, to, name))?;
    for module in behind.iter().filter(|module| module.folder.is_dir()) {
        let below = module.folder.strip_prefix(folder).unwrap_or(Path::new(""));
        if below == Path::new("") {
            continue;
        }
        let to = to.join(below);
        std::fs::create_dir_all(&to).map_err(Error::io(format!("make {}", to.display())))?;
        ["config.json", "model.safetensors"].iter().try_for_each(|name| copy_file(&module.folder, &to, name))?;
    }
    Ok(())
}

/// Copies the file `name`, if there is one.
fn copy_file(from: &Path, to: &Path, name: &str) -> Result<()> {
    let file = from.join(name);
    if file.is_file() {
        std::fs::copy(&file, to.join(name)).map_err(Error::io(format!("copy {}", file.display())))?;
    }
    Ok(())
}
