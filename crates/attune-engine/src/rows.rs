//! What the engines share that make a row of numbers of each text: the check of its tokens, and the way back to the client.
//! Called by [`native`](crate::native), [`encoder`](crate::encoder) and [`static_engine`](crate::static_engine).

use tokio::sync::oneshot;

use crate::{Error, Result, Vectors};

/// Where the row of each input will arrive, in their order.
pub(crate) type Replies = Vec<oneshot::Receiver<Result<Vec<f32>>>>;

/// Refuses token ids outside the `vocabulary` of a model: one would fail all that is computed with it. `api` has refused a
/// client's before, in the words of the request's field.
pub(crate) fn check_tokens(tokens: &[u32], vocabulary: usize) -> Result<()> {
    match tokens.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => Err(Error::UnknownToken { id: *id, vocabulary }),
        None => Ok(()),
    }
}

/// Waits for the rows of a request that was `submitted`. Dropping the future drops the receivers, which takes what is not
/// computed yet out of the engine.
pub(crate) fn arriving<'a>(submitted: Result<Replies>) -> Vectors<'a> {
    Box::pin(async move {
        let replies = submitted?;
        let mut rows = Vec::with_capacity(replies.len());
        for reply in replies {
            rows.push(reply.await.map_err(|_| Error::stopped())??);
        }
        Ok(rows)
    })
}
