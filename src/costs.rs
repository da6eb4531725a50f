//! The cost of answers on a machine of one's own beside prices per token, and the number of requests per day at which
//! both cost the same. `docs/costs.md` has the formula; `attune costs` and the page's calculator show it.

use crate::config::Price;

const TOKENS_PER_PRICE: f64 = 1e6;
const SECONDS_PER_HOUR: f64 = 3600.0;
/// Days that a month has here.
pub const DAYS_PER_MONTH: f64 = 30.0;

/// What is asked of a model, and what the machine gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Requests per day.
    pub requests_per_day: f64,
    /// Tokens of a prompt.
    pub prompt_tokens: f64,
    /// Tokens of an answer.
    pub completion_tokens: f64,
    /// Price of an hour of the machine.
    pub price_per_hour: f64,
    /// Hours per day that the machine is paid for.
    pub hours_per_day: f64,
    /// Tokens that a machine generates per second; `None`: one machine serves everything.
    pub tokens_per_second: Option<f64>,
    /// Tokens trained on in a month.
    pub training_tokens_per_month: f64,
}

/// The cost of both ways, in money per day.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// One request, by token prices.
    pub request: f64,
    /// The fine-tunes, by token prices.
    pub training: f64,
    /// All requests and fine-tunes, by token prices.
    pub by_token: f64,
    /// One machine.
    pub machine: f64,
    /// Machines that the requests need.
    pub machines: f64,
    /// Requests per day that one machine answers; `None` if its speed is not known.
    pub capacity: Option<f64>,
    /// Requests per day from which on the machine is cheaper; `None` if it never is.
    pub break_even: Option<f64>,
}

impl Comparison {
    /// Returns the cost of all machines.
    pub fn own(&self) -> f64 {
        self.machine * self.machines
    }
}

impl Plan {
    /// Compares the machine with `price`.
    pub fn compare(&self, price: &Price) -> Comparison {
        let request =
            (self.prompt_tokens * price.prompt + self.completion_tokens * price.completion) / TOKENS_PER_PRICE;
        let training = self.training_tokens_per_month * price.training / TOKENS_PER_PRICE / DAYS_PER_MONTH;
        let machine = self.hours_per_day * self.price_per_hour;
        let capacity = self
            .tokens_per_second
            .filter(|_| self.completion_tokens > 0.0)
            .map(|rate| rate * SECONDS_PER_HOUR * self.hours_per_day / self.completion_tokens);
        let machines = capacity.map_or(1.0, |capacity| (self.requests_per_day / capacity).ceil().max(1.0));
        // Rounded up; the factor keeps an error of the division from adding a whole request.
        let wanted = ((machine - training) / request * (1.0 - 1e-12)).max(0.0).ceil();
        // Beyond one machine's capacity a further machine is needed, which costs as much again: no break-even there.
        let reached = wanted.is_finite() && capacity.is_none_or(|capacity| wanted <= capacity);
        Comparison {
            request,
            training,
            by_token: self.requests_per_day * request + training,
            machine,
            machines,
            capacity,
            break_even: reached.then_some(wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price { prompt: 1.0, cached_prompt: None, completion: 4.0, training: 3.0, batch: None };
    const PLAN: Plan = Plan {
        requests_per_day: 10_000.0,
        prompt_tokens: 400.0,
        completion_tokens: 100.0,
        price_per_hour: 0.2,
        hours_per_day: 24.0,
        tokens_per_second: None,
        training_tokens_per_month: 0.0,
    };

    fn near(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-9, "{left} is not {right}");
    }

    #[test]
    fn the_break_even_is_where_both_cost_the_same() {
        let costs = PLAN.compare(&PRICE);
        near(costs.request, 0.0008);
        near(costs.by_token, 8.0);
        near(costs.machine, 4.8);
        near(costs.break_even.expect("there is one"), 6000.0);
        // Fine-tunes are paid for by the token only: 3 USD in 30 days.
        let trained = Plan { training_tokens_per_month: 1e6, ..PLAN }.compare(&PRICE);
        near(trained.by_token, 8.1);
        near(trained.break_even.expect("there is one"), 5875.0);
        let tripled = Plan { training_tokens_per_month: 3e6, ..PLAN }.compare(&PRICE);
        near(tripled.break_even.expect("4.5 / 0.0008 in floats is a little more than 5,625"), 5625.0);
    }

    #[test]
    fn a_machine_that_is_too_slow_is_never_cheaper_and_more_are_needed_for_more_requests() {
        // 5 tokens per second are 4,320 answers a day.
        let slow = Plan { tokens_per_second: Some(5.0), ..PLAN }.compare(&PRICE);
        assert_eq!((slow.capacity, slow.machines, slow.break_even), (Some(4320.0), 3.0, None));
        near(slow.own(), 14.4);
        let fast = Plan { tokens_per_second: Some(50.0), ..PLAN }.compare(&PRICE);
        assert_eq!((fast.machines, fast.break_even.map(f64::round)), (1.0, Some(6000.0)));
        let free = Price { prompt: 0.0, completion: 0.0, ..PRICE };
        assert_eq!(PLAN.compare(&free).break_even, None);
    }
}
