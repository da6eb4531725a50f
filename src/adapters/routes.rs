//! Which rows of a step go through which matrices of which adapter: worked out once per step by the decoder, used at every
//! layer.

use std::ops::Range;

use super::{Adapter, Site};
use crate::model::kernels::LoraRows;

/// The sites of a block that have one input and are computed together.
pub const GROUPS: [&[Site]; 4] =
    [&[Site::Query, Site::Key, Site::Value], &[Site::Output], &[Site::Gate, Site::Up], &[Site::Down]];

/// Rows of one task at the most: what a core works through while the matrices stay in its cache.
const TASK_ROWS: usize = 32;
/// Rows that are not split further for want of tasks: reading the matrices again would cost more.
const FEW_ROWS: usize = 8;

/// The routes of one step.
#[derive(Debug, Default)]
pub struct Routes<'a> {
    tasks: Vec<LoraRows<'a>>,
    /// Where the tasks of each layer and group begin; one entry more than there are, or none where no row has an adapter.
    starts: Vec<usize>,
}

impl<'a> Routes<'a> {
    /// Routes over `layers` decoder blocks for sequences with these rows and adapters, in the order of the rows.
    /// Neighbouring sequences of one adapter share its products.
    pub fn new(layers: usize, sequences: impl IntoIterator<Item = (Range<usize>, Option<&'a Adapter>)>) -> Self {
        let runs = runs(sequences);
        if runs.is_empty() {
            return Self::default();
        }
        let mut routes = Self::default();
        for layer in 0..layers {
            for sites in GROUPS {
                routes.starts.push(routes.tasks.len());
                for (rows, adapter) in &runs {
                    let Some(pairs) = adapter.layers.get(layer) else { continue };
                    for (output, site) in sites.iter().enumerate() {
                        let Some(pair) = pairs.get(*site) else { continue };
                        let pieces = pieces(rows).map(|rows| LoraRows { rows, output, pair });
                        routes.tasks.extend(pieces);
                    }
                }
            }
        }
        routes.starts.push(routes.tasks.len());
        routes
    }

    /// What is added at the group of `sites` that begins with `first`.
    pub fn at(&self, layer: usize, first: Site) -> &[LoraRows<'a>] {
        let group = GROUPS.iter().position(|sites| sites[0] == first);
        let index = group.map(|group| layer * GROUPS.len() + group);
        match index.and_then(|index| self.starts.get(index..index + 2)) {
            Some(range) => &self.tasks[range[0]..range[1]],
            None => &[],
        }
    }
}

fn runs<'a>(
    sequences: impl IntoIterator<Item = (Range<usize>, Option<&'a Adapter>)>,
) -> Vec<(Range<usize>, &'a Adapter)> {
    let mut runs: Vec<(Range<usize>, &Adapter)> = Vec::new();
    for (rows, adapter) in sequences {
        let Some(adapter) = adapter else { continue };
        match runs.last_mut() {
            Some((before, last)) if before.end == rows.start && std::ptr::eq(*last, adapter) => before.end = rows.end,
            _ => runs.push((rows, adapter)),
        }
    }
    runs
}

/// `rows` in even pieces, enough for all cores.
fn pieces(rows: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let most = rows.len().div_ceil(rayon::current_num_threads()).clamp(FEW_ROWS, TASK_ROWS);
    let count = rows.len().div_ceil(most).max(1);
    let (start, length) = (rows.start, rows.len());
    (0..count).map(move |piece| start + length * piece / count..start + length * (piece + 1) / count)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::adapters::{LoraLayer, LoraPair};

    fn adapter(sites: &[&[Site]]) -> Adapter {
        let matrix = || Tensor::zeros((1, 1), DType::F32, &Device::Cpu).expect("a tensor");
        let layer = |sites: &&[Site]| {
            let mut layer = LoraLayer::default();
            for site in *sites {
                layer.set(*site, LoraPair { a: matrix(), b: matrix(), scale: 1.0 });
            }
            layer
        };
        Adapter { id: String::new(), layers: sites.iter().map(layer).collect() }
    }

    fn shape(tasks: &[LoraRows<'_>]) -> Vec<(Range<usize>, usize)> {
        tasks.iter().map(|task| (task.rows.clone(), task.output)).collect()
    }

    #[test]
    fn neighbours_of_one_adapter_are_one_run_and_absent_sites_are_left_out() {
        let (one, two) = (adapter(&[&[Site::Value, Site::Up], &[]]), adapter(&[&[Site::Query], &[Site::Down]]));
        let sequences = [(0..1, Some(&one)), (1..2, None), (2..4, Some(&two)), (4..5, Some(&two)), (5..6, Some(&one))];
        let routes = Routes::new(2, sequences);
        assert_eq!(shape(routes.at(0, Site::Query)), [(0..1, 2), (2..5, 0), (5..6, 2)]);
        assert_eq!(shape(routes.at(0, Site::Gate)), [(0..1, 1), (5..6, 1)]);
        assert_eq!(shape(routes.at(1, Site::Down)), [(2..5, 0)]);
        assert!(routes.at(0, Site::Output).is_empty() && routes.at(1, Site::Query).is_empty());
        assert!(Routes::new(2, [(0..4, None)]).at(1, Site::Down).is_empty());
    }

    #[test]
    fn long_runs_are_cut_without_gaps() {
        let one = adapter(&[&[Site::Output]]);
        let routes = Routes::new(1, [(3..500, Some(&one))]);
        let tasks = shape(routes.at(0, Site::Output));
        assert!(tasks.len() > 8 && tasks.iter().all(|(rows, _)| !rows.is_empty() && rows.len() <= TASK_ROWS));
        assert!(tasks.windows(2).all(|pair| pair[0].0.end == pair[1].0.start));
        assert_eq!((tasks[0].0.start, tasks[tasks.len() - 1].0.end), (3, 500));
    }
}
