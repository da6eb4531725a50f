//! The files that the code in the sandbox may touch, as rules of Landlock: it reads the interpreter's folders, and has one
//! folder of its own.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use super::Plan;

/// Restricts this process for good.
pub(super) fn restrict(plan: &Plan) -> Result<(), String> {
    let fault = |error: RulesetError| format!("the files cannot be closed: {error}{}", hint());
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let own = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let mut rules = ruleset().map_err(fault)?;
    for path in &plan.read {
        rules = allow(rules, path, if path.is_dir() { read } else { AccessFs::ReadFile.into() })?;
    }
    for path in &plan.run {
        rules = allow(rules, path, AccessFs::ReadFile | AccessFs::Execute)?;
    }
    for path in ["/dev/urandom", "/dev/random", "/dev/zero"] {
        rules = allow(rules, Path::new(path), AccessFs::ReadFile.into())?;
    }
    rules = allow(rules, Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile)?;
    rules = allow(rules, &plan.folder, own)?;
    let status = rules.restrict_self().map_err(fault)?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(format!("the files cannot be closed{}", hint())),
        _ => Ok(()),
    }
}

/// Makes the rules that refuse everything which the kernel knows to refuse. What its first version of Landlock has is
/// needed; what later ones add, the filter of system calls refuses as well.
fn ruleset() -> Result<RulesetCreated, RulesetError> {
    let first = AccessFs::from_all(ABI::V1);
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(first)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?
        .create()
}

/// Adds what is allowed beneath a path, which must be there.
fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, String> {
    let fault = |error: &dyn std::fmt::Display| format!("{} cannot be opened to the code: {error}", path.display());
    let opened = PathFd::new(path).map_err(|error| fault(&error))?;
    rules.add_rule(PathBeneath::new(opened, access)).map_err(|error| fault(&error))
}

/// Says what a kernel without Landlock lacks.
fn hint() -> &'static str {
    match nix::errno::Errno::last() {
        nix::errno::Errno::EOPNOTSUPP => {
            ": Landlock is switched off; name it in the kernel's parameter `lsm`, such as lsm=landlock,…"
        }
        _ => {
            ": this needs Landlock, which Linux has since 5.13 where it is built with it, and which the container's profile \
             of seccomp must allow"
        }
    }
}
