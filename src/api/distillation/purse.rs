//! The budget of one job. What a request may cost at the most is taken from it before the request is sent, and what is
//! left over is put back: so the sum of all costs never exceeds the budget.

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::teachers::money::Money;

/// A budget that requests of several tasks draw on.
#[derive(Debug)]
pub(super) struct Purse {
    held: Mutex<Held>,
    changed: Notify,
}

#[derive(Debug)]
struct Held {
    left: Money,
    /// Requests under way.
    flying: usize,
    /// A request was refused since nothing more could come back.
    used: bool,
}

impl Purse {
    /// Makes a purse with so much in it, which may be less than nothing.
    pub(super) fn new(left: Money) -> Self {
        Self { held: Mutex::new(Held { left, flying: 0, used: false }), changed: Notify::new() }
    }

    /// Takes `sum`, once there is so much; false if there never will be.
    pub(super) async fn take(&self, sum: Money) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut held = self.held.lock();
                if held.used {
                    return false;
                }
                if sum <= held.left {
                    held.left = held.left - sum;
                    held.flying += 1;
                    return true;
                }
                if held.flying == 0 {
                    held.used = true;
                    self.changed.notify_waiters();
                    return false;
                }
            }
            changed.await;
        }
    }

    /// Puts back what is left of `taken`.
    pub(super) fn settle(&self, taken: Money, cost: Money) {
        let mut held = self.held.lock();
        held.left = held.left + taken - cost;
        held.flying = held.flying.saturating_sub(1);
        self.changed.notify_waiters();
    }

    /// True once a request was refused.
    pub(super) fn is_used(&self) -> bool {
        self.held.lock().used
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const fn money(millionths: i64) -> Money {
        Money::of_millionths(millionths)
    }

    #[tokio::test]
    async fn a_request_waits_for_what_others_may_put_back_and_not_for_ever() {
        let purse = Arc::new(Purse::new(money(10)));
        assert!(purse.take(money(7)).await);
        let other = tokio::spawn({
            let purse = Arc::clone(&purse);
            async move { purse.take(money(5)).await }
        });
        tokio::task::yield_now().await;
        assert!(!other.is_finished(), "3 are left, and 7 may come back");
        purse.settle(money(7), money(2));
        assert!(other.await.expect("a task"), "8 are left");
        purse.settle(money(5), money(5));
        assert!(!purse.is_used());
        assert!(!purse.take(money(4)).await && purse.is_used(), "3 are left, and nothing comes back");
        assert!(!purse.take(money(1)).await, "the order of prompts would else decide what is asked");
    }

    #[tokio::test]
    async fn a_purse_that_a_teacher_overdrew_is_used() {
        let purse = Purse::new(money(3));
        assert!(purse.take(money(3)).await);
        purse.settle(money(3), money(5));
        assert!(!purse.take(money(0)).await);
    }
}
