//! Picks between time and memory for a job, from the estimate of each kind of recomputation. Called by the worker.

use crate::train::estimate::TrainingMemory;
use crate::train::recomputation::Recomputation;
use crate::{Error, Result};
use attune_support::format;
use attune_support::system::FreeMemory;

/// Divisor of the share of all memory that training leaves free, for requests and for other programs.
const RESERVED_SHARE: u64 = 16;
/// Largest such reserve, in bytes.
const MAX_RESERVED: u64 = 512 << 20;

/// The operator's limits on the memory of training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryBounds {
    /// Recomputation that every job uses; `None` chooses for each job.
    pub recomputation: Option<Recomputation>,
    /// Most bytes of the whole process, including the models that it serves, that a job may lead to.
    pub limit: Option<u64>,
    /// Most bytes of one adapter where it is served.
    pub adapter: Option<u64>,
}

impl MemoryBounds {
    /// Picks the fastest kind of recomputation that fits into free memory and returns its memory; an error if none
    /// fits.
    ///
    /// `memory` is the estimate for each kind, `longest` the tokens of the longest example. If nothing is known of the
    /// memory, everything fits.
    pub fn choose(
        &self,
        memory: impl Fn(Recomputation) -> TrainingMemory,
        free: Option<FreeMemory>,
        longest: usize,
    ) -> Result<TrainingMemory> {
        let forced = self.recomputation.map(|forced| [forced]);
        let ways = forced.as_ref().map_or(Recomputation::CHOSEN.as_slice(), |forced| forced.as_slice());
        let mut least = None;
        for way in ways {
            let mut memory = memory(*way);
            memory.available = self.room(memory.process, free);
            if memory.available.is_none_or(|room| memory.added() <= room) {
                return Ok(memory);
            }
            least = Some(memory);
        }
        least.map_or_else(|| Err(Error::Internal("no way to train".into())), |memory| Err(refusal(&memory, longest)))
    }

    /// Refuses a job whose adapter of `bytes` could not be served once it is trained.
    pub fn check_served(&self, bytes: u64) -> Result<()> {
        let Some(limit) = self.adapter.filter(|limit| bytes > *limit) else { return Ok(()) };
        let message = format!(
            "The job's adapter would take {} where it is served, more than the {} that `adapter_device_mib` of the server's \
             [limits] allows: set a smaller rank or fewer target_modules.",
            format::bytes(bytes),
            format::bytes(limit),
        );
        Err(Error::Setting { name: "rank", message })
    }

    /// Returns the bytes that training may add to a process of `process` bytes; `None` if unknown.
    fn room(&self, process: u64, free: Option<FreeMemory>) -> Option<u64> {
        let reserved = |memory: FreeMemory| (memory.total / RESERVED_SHARE).min(MAX_RESERVED);
        let free = free.map(|memory| memory.free.saturating_sub(reserved(memory)));
        let limit = self.limit.map(|limit| limit.saturating_sub(process));
        [free, limit].into_iter().flatten().min()
    }
}

fn refusal(memory: &TrainingMemory, longest: usize) -> Error {
    let forced = match memory.recomputation {
        Recomputation::Full => String::new(),
        forced => {
            format!(" `recomputation` of the server's [training] is \"{}\": \"full\" takes less.", forced.name())
        }
    };
    let message = format!(
        "The job would need {} of memory beside the {} that the server holds, but only {} are left for it: {} for the \
         adapter and its gradients, {} for the activations of its largest batch, {} for the loss, {} for \
         the allocator.{forced} The longest \
         example has {longest} tokens: set max_seq_length below that, or a smaller rank or fewer target_modules, or \
         serve the model in less memory (`dtype` or `quantize` of the model in the server's configuration).",
        format::bytes(memory.added()),
        format::bytes(memory.process),
        format::bytes(memory.available.unwrap_or(0)),
        format::bytes(memory.adapter),
        format::bytes(memory.activations),
        format::bytes(memory.loss),
        format::bytes(memory.allocator),
    );
    Error::InsufficientMemory(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Returns 100, 60 or 20 MiB on top of a process of 500 MiB.
    fn estimate(recomputation: Recomputation) -> TrainingMemory {
        let activations = match recomputation {
            Recomputation::None => 90 * MIB,
            Recomputation::Selective => 50 * MIB,
            Recomputation::Full => 10 * MIB,
        };
        let (process, adapter) = (500 * MIB, 10 * MIB);
        let peak = process + adapter + activations;
        TrainingMemory { process, adapter, activations, peak, recomputation, ..TrainingMemory::default() }
    }

    fn chosen(bounds: MemoryBounds, free: Option<u64>) -> Option<Recomputation> {
        let free = free.map(|free| FreeMemory { total: 1600 * MIB, free: free * MIB });
        bounds.choose(estimate, free, 300).ok().map(|memory| memory.recomputation)
    }

    #[test]
    fn the_fastest_way_that_fits_beside_the_reserve_is_taken() {
        use Recomputation::{Full, Selective};
        // The reserve is a sixteenth of 1,600 MiB.
        for (free, way) in [
            (None, Some(Selective)),
            (Some(1000), Some(Selective)),
            (Some(160), Some(Selective)),
            (Some(159), Some(Full)),
            (Some(120), Some(Full)),
            (Some(119), None),
            (Some(0), None),
        ] {
            assert_eq!(chosen(MemoryBounds::default(), free), way, "{free:?} MiB free");
        }
    }

    #[test]
    fn a_limit_of_the_process_counts_like_memory_that_is_not_there() {
        let limited = |limit: u64| MemoryBounds { limit: Some(limit * MIB), ..MemoryBounds::default() };
        assert_eq!(chosen(limited(560), None), Some(Recomputation::Selective));
        assert_eq!(chosen(limited(559), None), Some(Recomputation::Full));
        assert_eq!(chosen(limited(530), Some(1000)), Some(Recomputation::Full));
        assert_eq!(chosen(limited(10_000), Some(130)), Some(Recomputation::Full), "the tighter one counts");
        assert_eq!(chosen(limited(100), None), None);
    }

    #[test]
    fn an_adapter_that_could_not_be_served_is_not_trained() {
        let bounds = MemoryBounds { adapter: Some(4 * MIB), ..MemoryBounds::default() };
        bounds.check_served(4 * MIB).expect("it fits");
        let said = bounds.check_served(5 * MIB).expect_err("refused").to_string();
        assert!(said.contains("5.0 MiB") && said.contains("4.0 MiB") && said.contains("adapter_device_mib"), "{said}");
        MemoryBounds::default().check_served(u64::MAX).expect("nothing is known");
    }

    #[test]
    fn a_way_that_is_set_is_the_only_one() {
        let forced = |way| MemoryBounds { recomputation: Some(way), ..MemoryBounds::default() };
        for way in Recomputation::ALL {
            assert_eq!(chosen(forced(way), Some(1000)), Some(way));
        }
        assert_eq!(chosen(forced(Recomputation::Selective), Some(150)), None, "it does not fit");
    }

    #[test]
    fn a_refusal_has_numbers_and_what_to_do() {
        let free = Some(FreeMemory { total: 1600 * MIB, free: 110 * MIB });
        let said = MemoryBounds::default().choose(estimate, free, 321).expect_err("refused").to_string();
        for part in [
            "20.0 MiB of memory",
            "500.0 MiB that",
            "only 10.0 MiB",
            "321 tokens",
            "max_seq_length",
            "rank",
            "quantize",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("recomputation"), "{said}");
        let forced = MemoryBounds { recomputation: Some(Recomputation::None), ..MemoryBounds::default() };
        let said = forced.choose(estimate, free, 321).expect_err("refused").to_string();
        assert!(said.contains("\"none\"") && said.contains("100.0 MiB of memory"), "{said}");
    }
}
