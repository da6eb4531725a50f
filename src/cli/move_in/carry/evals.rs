//! Evals, with the answers of the old models as runs.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::forms::{eval_request, given_line, is_of_stored_answers, with_old_id};
use super::made::{Upload, cut};
use super::{Carry, KIND, MAX_NOTE, by_old_id};
use crate::cli::move_in::folder::{OldEval, OldRun};
use crate::graders::item_schema::fault;
use crate::{Result, format};

/// The answers of a run that this server can judge.
struct Answers {
    /// Items with their answers.
    lines: Vec<Value>,
    /// Why some, or all, are not among them.
    problem: Option<String>,
}

impl Answers {
    /// Takes the answers of text to items that follow the eval's `schema`: one that does not would fail the whole run.
    fn of(run: &OldRun, is_stored: bool, schema: &Value) -> Self {
        let (mut lines, mut of_text, mut unfit) = (Vec::new(), 0, None);
        for line in run.items.iter().filter_map(|item| given_line(item, is_stored)) {
            of_text += 1;
            match fault(schema, &line["item"], "item") {
                None => lines.push(line),
                Some(fault) => unfit = unfit.or(Some(fault)),
            }
        }
        let is_whole = lines.len() == run.items.len() && !lines.is_empty();
        let problem = (!is_whole).then(|| {
            let [all, of_text, fit] =
                [run.items.len(), of_text, lines.len()].map(|number| format::count(number as f64));
            match unfit {
                None => format!("{of_text} of {all} items have an answer of text to be judged anew"),
                Some(fault) => format!(
                    "{of_text} of {all} items have an answer of text, and {fit} the form of the eval's items, to be \
                     judged anew: {fault}"
                ),
            }
        });
        Self { lines, problem }
    }
}

impl Carry<'_> {
    pub(super) async fn evals(&mut self) -> Result<()> {
        for eval in self.folder.evals()? {
            let runs: Vec<Value> =
                eval.runs.iter().map(|run| json!({"run": run.object, "output_items": run.items})).collect();
            let history = json!({"eval": eval.object, "runs": runs});
            if let Some(id) = self.history(&eval.id, "eval", &history).await? {
                self.done(|carried| &mut carried.eval_histories, &eval.id, id)?;
            }
            let Some(id) = self.eval(&eval).await? else { continue };
            self.done(|carried| &mut carried.evals, &eval.id, id.clone())?;
            let there = RefCell::new(by_old_id(self.local, &["evals", &id, "runs"]).await?);
            let made = self.local.get(&["evals", &id], &[]).await?;
            let (schema, is_stored) =
                (&made["data_source_config"]["schema"]["properties"]["item"], is_of_stored_answers(&eval));
            for run in &eval.runs {
                let answers = Answers::of(run, is_stored, schema);
                self.run(&id, run, answers, &there).await?;
            }
        }
        Ok(())
    }

    /// Makes an eval with the same criteria; `None` if the server does not take them.
    async fn eval(&mut self, eval: &OldEval) -> Result<Option<String>> {
        let known = self.there.evals.borrow().get(&eval.id).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let body = match eval_request(eval) {
            Ok(body) => body,
            Err(reason) => {
                self.ledger.problem(&eval.id, format!("kept as history: {reason}"))?;
                return Ok(None);
            }
        };
        let there = &self.there.evals;
        let made = self.create(&["evals"], &body, &eval.id, there).await?;
        match made {
            Ok(id) => Ok(Some(id)),
            Err(reason) => {
                self.ledger.problem(&eval.id, format!("kept as history: {reason}"))?;
                Ok(None)
            }
        }
    }

    /// Lets the server judge the answers that the old model gave in a run.
    async fn run(
        &mut self,
        eval: &str,
        run: &OldRun,
        Answers { lines, problem }: Answers,
        there: &RefCell<BTreeMap<String, String>>,
    ) -> Result<()> {
        if let Some(problem) = problem {
            self.ledger.problem(&run.id, problem)?;
        }
        let known = there.borrow().get(&run.id).cloned();
        if let Some(id) = known {
            return self.done(|carried| &mut carried.runs, &run.id, id);
        }
        if lines.is_empty() {
            return Ok(());
        }
        let model = run.object["model"].as_str().unwrap_or("the old model");
        let name = run.object["name"].as_str().unwrap_or_default();
        let mut content = Vec::new();
        for line in &lines {
            content.extend_from_slice(line.to_string().as_bytes());
            content.push(b'\n');
        }
        let data_id = format!("{}:answers", run.id);
        let upload = Upload {
            old_id: &data_id,
            filename: &format!("{}.jsonl", run.id),
            purpose: "evals",
            content: &content,
            notes: vec![(KIND, "eval.run.output_items".into())],
        };
        let file = match self.upload(upload).await? {
            Ok(file) => file,
            Err(reason) => return self.ledger.problem(&run.id, format!("not judged anew: {reason}")),
        };
        let body = json!({
            "name": cut(&format!("{name} (answers of {model})"), MAX_NOTE),
            "metadata": with_old_id(&run.object["metadata"], &run.id),
            "data_source": {"type": "jsonl", "source": {"type": "file_id", "id": file}},
        });
        match self.create(&["evals", eval, "runs"], &body, &run.id, there).await? {
            Ok(id) => self.done(|carried| &mut carried.runs, &run.id, id),
            Err(reason) => self.ledger.problem(&run.id, format!("not judged anew: {reason}")),
        }
    }
}
