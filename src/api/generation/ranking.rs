//! Scores and labels of texts from models that classify: [`rerank`] sorts documents by how well they answer a question,
//! [`score`] scores pairs of texts, [`classify`] names the label of each text. [`pairs`] makes tokens of two texts
//! that a model reads together, [`likeness`] compares the vectors of two texts.

pub(crate) mod classify;
mod likeness;
mod pairs;
pub(crate) mod rerank;
pub(crate) mod score;
