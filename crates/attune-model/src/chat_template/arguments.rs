//! Arguments of filters and methods, bound to names as Python binds them: by position, then by keyword.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

/// Returns the arguments of `function` in the order of `names`; `None` for those that are not given. More arguments
/// than names, an unknown keyword, and one given twice are errors.
pub(super) fn bind<const N: usize>(
    function: &str,
    names: [&str; N],
    arguments: &[Value],
) -> Result<[Option<Value>; N], Error> {
    let (positional, keywords) = split(arguments)?;
    if positional.len() > N {
        return Err(refuse(format!("{function} takes at most {N} arguments")));
    }
    let mut bound = [const { None }; N];
    for (slot, value) in bound.iter_mut().zip(positional) {
        *slot = Some(value.clone());
    }
    for name in keywords.iter().flat_map(Kwargs::args) {
        let slot = names.iter().position(|known| *known == name).filter(|&slot| bound[slot].is_none());
        let slot = slot.ok_or_else(|| refuse(format!("{function} got an unexpected argument `{name}`")))?;
        bound[slot] = keywords.as_ref().map(|keywords| keywords.peek(name)).transpose()?;
    }
    Ok(bound)
}

/// Splits arguments into those by position and those by keyword.
pub(super) fn split(arguments: &[Value]) -> Result<(&[Value], Option<Kwargs>), Error> {
    match arguments.split_last() {
        Some((last, positional)) if last.is_kwargs() => Ok((positional, Some(Kwargs::try_from(last.clone())?))),
        _ => Ok((arguments, None)),
    }
}

/// Returns the error of an operation that Python would refuse, too.
pub(super) fn refuse(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
