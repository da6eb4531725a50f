//! The forms that the rows of a table can have as lines, with what their columns are. [`super::columns`] lets a person choose,
//! [`super::conversion`] makes the lines.

use serde_json::{Map, Value, json};

use crate::datasets::parse::shorten;

/// A form that training lines can have.
pub(super) struct Target {
    /// Its word in forms.
    pub id: &'static str,
    pub title: &'static str,
    pub hint: &'static str,
    pub roles: &'static [Role],
    pub make: fn(&[Option<&str>], &str) -> Result<Value, String>,
}

/// What a column can be of a training line.
pub(super) struct Role {
    /// Its word in forms.
    pub id: &'static str,
    pub label: &'static str,
    /// False if a row may have nothing there.
    pub required: bool,
    /// Names that such columns often have, in lower case.
    names: &'static [&'static str],
}

const QUESTIONS: &[&str] =
    &["user", "question", "prompt", "input", "instruction", "query", "text", "message", "ticket", "frage", "body"];
const ANSWERS: &[&str] = &[
    "assistant",
    "answer",
    "completion",
    "output",
    "response",
    "reply",
    "target",
    "label",
    "category",
    "class",
    "antwort",
];

/// What a teacher is asked, for a distillation.
pub(super) const PROMPTS: &[Target] = &[Target {
    id: "prompts",
    title: "Prompts for a teacher",
    hint: "The teacher answers each prompt. If the table has the right answers, too, those of the teacher can be compared with them.",
    roles: &[
        Role { id: "prompt", label: "Prompt", required: true, names: QUESTIONS },
        Role { id: "answer", label: "Right answer", required: false, names: ANSWERS },
    ],
    make: |cells, _| {
        let mut line = Map::new();
        line.insert("prompt".into(), cells[0].into());
        if let Some(answer) = cells[1] {
            line.insert("answer".into(), answer.into());
        }
        Ok(line.into())
    },
}];

/// The forms, the most usual one first.
pub(super) const TARGETS: &[Target] = &[
    Target {
        id: "chat",
        title: "Questions and answers of a chat",
        hint: "The model learns to give the answer to the question, in the form of a chat. The usual choice.",
        roles: &[
            Role { id: "system", label: "System message", required: false, names: &["system", "context", "persona"] },
            Role { id: "user", label: "Question (user)", required: true, names: QUESTIONS },
            Role { id: "assistant", label: "Answer (assistant)", required: true, names: ANSWERS },
        ],
        make: |cells, system| Ok(chat(cells, system)),
    },
    Target {
        id: "completion",
        title: "Prompts and their continuations",
        hint: "The model learns to go on after the prompt, without the form of a chat: for models without a chat template.",
        roles: &[
            Role { id: "prompt", label: "Prompt", required: true, names: QUESTIONS },
            Role { id: "completion", label: "Completion", required: true, names: ANSWERS },
        ],
        make: |cells, _| Ok(json!({"prompt": cells[0], "completion": cells[1]})),
    },
    Target {
        id: "preference",
        title: "A better and a worse answer",
        hint: "The model learns to prefer the one to the other (the method dpo).",
        roles: &[
            Role { id: "prompt", label: "Prompt", required: true, names: QUESTIONS },
            Role {
                id: "chosen",
                label: "Better answer",
                required: true,
                names: &["chosen", "preferred", "better", "good", "accepted"],
            },
            Role {
                id: "rejected",
                label: "Worse answer",
                required: true,
                names: &["rejected", "worse", "bad", "non_preferred"],
            },
        ],
        make: |cells, _| Ok(json!({"prompt": cells[0], "chosen": cells[1], "rejected": cells[2]})),
    },
    Target {
        id: "pair",
        title: "Texts that belong together",
        hint: "For models of embeddings: the vectors of both texts come close, that of the third text moves away.",
        roles: &[
            Role { id: "anchor", label: "Text", required: true, names: &["anchor", "query", "question", "text"] },
            Role {
                id: "positive",
                label: "Text that belongs to it",
                required: true,
                names: &["positive", "document", "passage", "answer"],
            },
            Role {
                id: "negative",
                label: "Text that does not",
                required: false,
                names: &["negative", "hard_negative"],
            },
        ],
        make: |cells, _| {
            let mut line = Map::new();
            line.insert("anchor".into(), cells[0].into());
            line.insert("positive".into(), cells[1].into());
            if let Some(negative) = cells[2] {
                line.insert("negative".into(), negative.into());
            }
            Ok(line.into())
        },
    },
    Target {
        id: "score",
        title: "Two texts and how alike they are",
        hint: "For models of embeddings: the score is a number from -1 to 1.",
        roles: &[
            Role { id: "first", label: "First text", required: true, names: &["sentence1", "text1", "first", "a"] },
            Role { id: "second", label: "Second text", required: true, names: &["sentence2", "text2", "second", "b"] },
            Role { id: "score", label: "Score", required: true, names: &["score", "similarity"] },
        ],
        make: |cells, _| Ok(json!({"sentence1": cells[0], "sentence2": cells[1], "score": number(cells[2])?})),
    },
    Target {
        id: "label",
        title: "A query, a document, and whether it answers the query",
        hint: "For cross-encoders: the label is a number from 0 to 1.",
        roles: &[
            Role { id: "query", label: "Query", required: true, names: &["query", "question"] },
            Role { id: "document", label: "Document", required: true, names: &["document", "passage", "text"] },
            Role { id: "label", label: "Label", required: true, names: &["label", "relevance", "relevant"] },
        ],
        make: |cells, _| Ok(json!({"query": cells[0], "document": cells[1], "label": number(cells[2])?})),
    },
];

impl Target {
    /// Finds the form with this word.
    pub(super) fn of(id: &str) -> Option<&'static Self> {
        TARGETS.iter().chain(PROMPTS).find(|target| target.id == id)
    }

    /// Guesses which column is which, by their names: by the whole name, then by a part of it. No column twice.
    pub(super) fn guess(&self, columns: &[String]) -> Vec<Option<usize>> {
        let mut taken = vec![false; columns.len()];
        let lower: Vec<String> = columns.iter().map(|column| column.to_lowercase()).collect();
        let mut guesses = vec![None; self.roles.len()];
        for is_whole in [true, false] {
            for (role, guess) in self.roles.iter().zip(&mut guesses).filter(|(_, guess)| guess.is_none()) {
                let fits = |name: &&str, column: &str| if is_whole { column == *name } else { column.contains(*name) };
                let found = role.names.iter().filter(|name| is_whole || name.len() > 1).find_map(|name| {
                    lower.iter().enumerate().position(|(index, column)| !taken[index] && fits(name, column))
                });
                if let Some(found) = found {
                    taken[found] = true;
                    *guess = Some(found);
                }
            }
        }
        guesses
    }
}

fn chat(cells: &[Option<&str>], system: &str) -> Value {
    let system = cells[0].or_else(|| (!system.trim().is_empty()).then_some(system));
    let mut messages: Vec<Value> = system.map(|text| json!({"role": "system", "content": text})).into_iter().collect();
    messages.push(json!({"role": "user", "content": cells[1]}));
    messages.push(json!({"role": "assistant", "content": cells[2]}));
    json!({"messages": messages})
}

/// Reads a number of a cell.
fn number(cell: Option<&str>) -> Result<Value, String> {
    let text = cell.unwrap_or_default().trim();
    let value = match text.to_ascii_lowercase().as_str() {
        "true" => Some(1.0),
        "false" => Some(0.0),
        text => text.parse::<f64>().ok().filter(|number| number.is_finite()),
    };
    value.map(Value::from).ok_or_else(|| format!("has `{}` where a number must stand, such as 0.5", shorten(text)))
}
