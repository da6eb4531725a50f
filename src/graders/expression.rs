//! The formula of a grader that combines others: numbers, the names of scores, `+ - * / ^`, parentheses, and the
//! functions min, max, abs, floor, ceil, exp, sqrt and log.

use std::collections::BTreeSet;

/// Longest formula in bytes, and how deep it may be nested.
const MAX_BYTES: usize = 4 << 10;
const MAX_DEPTH: usize = 64;

/// A formula.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression(Node);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Number(f64),
    Name(String),
    Negative(Box<Node>),
    Operation(Operator, Box<Node>, Box<Node>),
    Call(Function, Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Min,
    Max,
    Abs,
    Floor,
    Ceil,
    Exp,
    Sqrt,
    Log,
}

/// Why a formula is refused; for the one who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(String);

impl Expression {
    /// Reads a formula.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() > MAX_BYTES {
            return Err(Fault(format!("The formula is longer than {MAX_BYTES} bytes.")));
        }
        let mut parser = Parser { text, at: 0, depth: 0 };
        let node = parser.sum()?;
        match parser.peek() {
            None => Ok(Self(node)),
            Some(_) => Err(parser.fault("an operator or the end")),
        }
    }

    /// Returns the names of the scores that it uses.
    pub fn names(&self) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        self.0.collect(&mut names);
        names
    }

    /// Returns the value with the scores that `score` returns; `None` if a score is missing or the value is not finite.
    pub fn evaluate(&self, score: &impl Fn(&str) -> Option<f64>) -> Option<f64> {
        self.0.evaluate(score).filter(|value| value.is_finite())
    }
}

impl Node {
    fn collect<'a>(&'a self, names: &mut BTreeSet<&'a str>) {
        match self {
            Self::Number(_) => {}
            Self::Name(name) => {
                names.insert(name);
            }
            Self::Negative(node) => node.collect(names),
            Self::Operation(_, left, right) => {
                left.collect(names);
                right.collect(names);
            }
            Self::Call(_, arguments) => arguments.iter().for_each(|argument| argument.collect(names)),
        }
    }

    fn evaluate(&self, score: &impl Fn(&str) -> Option<f64>) -> Option<f64> {
        Some(match self {
            Self::Number(number) => *number,
            Self::Name(name) => score(name)?,
            Self::Negative(node) => -node.evaluate(score)?,
            Self::Operation(operator, left, right) => {
                let (left, right) = (left.evaluate(score)?, right.evaluate(score)?);
                match operator {
                    Operator::Add => left + right,
                    Operator::Subtract => left - right,
                    Operator::Multiply => left * right,
                    Operator::Divide => left / right,
                    Operator::Power => left.powf(right),
                }
            }
            Self::Call(function, arguments) => {
                let values: Option<Vec<f64>> = arguments.iter().map(|argument| argument.evaluate(score)).collect();
                let values = values?;
                let first = *values.first()?;
                match function {
                    Function::Min => values.into_iter().fold(f64::INFINITY, f64::min),
                    Function::Max => values.into_iter().fold(f64::NEG_INFINITY, f64::max),
                    Function::Abs => first.abs(),
                    Function::Floor => first.floor(),
                    Function::Ceil => first.ceil(),
                    Function::Exp => first.exp(),
                    Function::Sqrt => first.sqrt(),
                    Function::Log => first.ln(),
                }
            }
        })
    }
}

impl Function {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "min" => Self::Min,
            "max" => Self::Max,
            "abs" => Self::Abs,
            "floor" => Self::Floor,
            "ceil" => Self::Ceil,
            "exp" => Self::Exp,
            "sqrt" => Self::Sqrt,
            "log" => Self::Log,
            _ => return None,
        })
    }

    fn takes(self, arguments: usize) -> bool {
        match self {
            Self::Min | Self::Max => arguments >= 1,
            _ => arguments == 1,
        }
    }
}

/// True if a formula can use the name.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_alphabetic() || first == '_') && name.chars().all(is_in_name)
}

fn is_in_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Reads from left to right; each method reads what binds as tightly as its name says.
struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Returns the next character that is no space.
    fn peek(&mut self) -> Option<char> {
        self.at += self.rest().len() - self.rest().trim_start().len();
        self.rest().chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn fault(&self, expected: &str) -> Fault {
        let found = self.rest().chars().next().map_or("its end".to_owned(), |found| format!("'{found}'"));
        Fault(format!(
            "The formula has {found} at character {} instead of {expected}.",
            self.text[..self.at].chars().count() + 1
        ))
    }

    fn sum(&mut self) -> Result<Node, Fault> {
        let mut node = self.product()?;
        loop {
            let operator = match self.peek() {
                Some('+') => Operator::Add,
                Some('-') => Operator::Subtract,
                _ => return Ok(node),
            };
            self.at += 1;
            node = Node::Operation(operator, node.into(), self.product()?.into());
        }
    }

    fn product(&mut self) -> Result<Node, Fault> {
        let mut node = self.sign()?;
        loop {
            let operator = match self.peek() {
                Some('*') => Operator::Multiply,
                Some('/') => Operator::Divide,
                _ => return Ok(node),
            };
            self.at += 1;
            node = Node::Operation(operator, node.into(), self.sign()?.into());
        }
    }

    fn sign(&mut self) -> Result<Node, Fault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Fault(format!("The formula is nested deeper than {MAX_DEPTH} levels.")));
        }
        let node = if self.take('-') { Node::Negative(self.sign()?.into()) } else { self.power()? };
        self.depth -= 1;
        Ok(node)
    }

    /// The exponent binds to the right, and tighter than a sign before the base: `-2^2` is -4.
    fn power(&mut self) -> Result<Node, Fault> {
        let base = self.operand()?;
        Ok(if self.take('^') { Node::Operation(Operator::Power, base.into(), self.sign()?.into()) } else { base })
    }

    fn operand(&mut self) -> Result<Node, Fault> {
        let next = self.peek();
        let start = self.at;
        let end_of = |text: &str, part: fn(char) -> bool| text.find(|next: char| !part(next)).unwrap_or(text.len());
        match next {
            Some('(') => {
                self.at += 1;
                let node = self.sum()?;
                if self.take(')') { Ok(node) } else { Err(self.fault("a closing parenthesis")) }
            }
            Some(digit) if digit.is_ascii_digit() || digit == '.' => {
                self.at += end_of(self.rest(), |next| next.is_ascii_digit() || next == '.');
                if self.rest().starts_with(['e', 'E']) {
                    let sign = usize::from(self.rest()[1..].starts_with(['+', '-']));
                    let digits = end_of(&self.rest()[1 + sign..], |next| next.is_ascii_digit());
                    self.at += if digits > 0 { 1 + sign + digits } else { 0 };
                }
                let written = &self.text[start..self.at];
                written.parse().map(Node::Number).map_err(|_| Fault(format!("'{written}' is not a number.")))
            }
            Some(first) if first.is_alphabetic() || first == '_' => {
                self.at += end_of(self.rest(), is_in_name);
                let name = &self.text[start..self.at];
                if self.take('(') { self.call(name) } else { Ok(Node::Name(name.to_owned())) }
            }
            _ => Err(self.fault("a number, a score or a parenthesis")),
        }
    }

    fn call(&mut self, name: &str) -> Result<Node, Fault> {
        let function = Function::of(name).ok_or_else(|| {
            Fault(format!("'{name}' is not a function: use min, max, abs, floor, ceil, exp, sqrt or log."))
        })?;
        let mut arguments = Vec::new();
        if !self.take(')') {
            arguments.push(self.sum()?);
            while self.take(',') {
                arguments.push(self.sum()?);
            }
            if !self.take(')') {
                return Err(self.fault("a comma or a closing parenthesis"));
            }
        }
        if !function.takes(arguments.len()) {
            let takes = if function.takes(2) { "at least one value" } else { "one value" };
            return Err(Fault(format!("'{name}' takes {takes}, not {}.", arguments.len())));
        }
        Ok(Node::Call(function, arguments))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<f64> {
        let scores = |name: &str| match name {
            "a" => Some(0.5),
            "b_2" => Some(4.0),
            _ => None,
        };
        Expression::parse(text).expect("a formula").evaluate(&scores)
    }

    #[test]
    fn formulas_have_the_usual_order() {
        for (text, expected) in [
            ("1 + 2 * 3", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("10 - 4 - 3", 3.0),
            ("16 / 4 / 2", 2.0),
            ("2 ^ 3 ^ 2", 512.0),
            ("-2 ^ 2", -4.0),
            ("2 ^ -1", 0.5),
            ("2 * -3", -6.0),
            ("--3", 3.0),
            ("a", 0.5),
            ("0.5*a + 0.5*b_2", 2.25),
            ("min(a, b_2, 3)", 0.5),
            ("max(a)", 0.5),
            ("abs(-a) + floor(1.9) + ceil(1.1)", 3.5),
            ("sqrt(b_2) + exp(0) + log(1)", 3.0),
            ("1.5e1 + .5 + 2E-1", 15.7),
        ] {
            assert_eq!(value(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_value_that_is_no_number_is_none() {
        for text in ["1 / 0", "sqrt(-1)", "log(0)", "exp(1000)", "unknown + 1", "0 / 0"] {
            assert_eq!(value(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_found_wherever_they_stand() {
        let expression = Expression::parse("min(x, 2 * y) - (z ^ x)").expect("a formula");
        assert_eq!(expression.names().into_iter().collect::<Vec<_>>(), ["x", "y", "z"]);
    }

    #[test]
    fn faults_say_where_they_are() {
        for (text, part) in [
            ("", "its end"),
            ("1 +", "its end"),
            ("1 2", "'2' at character 3"),
            ("(1", "closing parenthesis"),
            ("1)", "')'"),
            ("sin(1)", "'sin' is not a function"),
            ("min()", "at least one"),
            ("abs(1, 2)", "one value"),
            ("1.2.3", "not a number"),
            ("a ; b", "';'"),
        ] {
            let fault = Expression::parse(text).expect_err(text).to_string();
            assert!(fault.contains(part), "{text}: {fault}");
        }
        assert!(Expression::parse(&"(".repeat(3000)).is_err());
        assert!(Expression::parse(&"-".repeat(3000)).is_err());
        assert!(Expression::parse(&"1+".repeat(3000)).is_err());
        assert!(Expression::parse(&format!("1{}", "+1".repeat(2000))).is_ok());
    }
}
