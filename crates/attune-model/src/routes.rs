//! Routes of a step: which rows go through which matrices of which adapter. Made once per step by the decoder, used at
//! every layer.

use std::ops::Range;

use candle_core::{DType, Tensor};

use crate::Result;
use crate::kernels::{GpuKernels, Kernels, LoraRows, LoraRun, cpu};
use crate::lora::{Adapter, Site};

/// Sites of a block that have the same input and are computed together.
pub const GROUPS: [&[Site]; 6] = [
    &[Site::Query, Site::Key, Site::Value],
    &[Site::Output],
    &[Site::Gate, Site::Up],
    &[Site::Down],
    &[Site::ConvolutionInput],
    &[Site::ConvolutionOutput],
];

/// Most rows of one task: as many as a core works through while the matrices stay in its cache.
const TASK_ROWS: usize = 32;
/// Rows that are not split further even if tasks are few: reading the matrices again would cost more.
const FEW_ROWS: usize = 8;

/// The routes of one step.
#[derive(Debug)]
pub struct Routes<'a> {
    /// Adapters with all of their rows, in order.
    runs: Vec<(Range<usize>, &'a Adapter)>,
    /// True, by layer and group, if an adapter changes some row. Empty if no row has an adapter.
    changes: Vec<bool>,
    products: Products<'a>,
}

/// Products of a step, as its device computes them.
#[derive(Debug)]
enum Products<'a> {
    /// Tasks for the cores, and the index at which those of each layer and group begin, with the number of tasks at the
    /// end.
    Cpu { tasks: Vec<LoraRows<'a>>, starts: Vec<usize> },
    /// Adapters with all of their rows, for a GPU.
    Gpu { kernels: &'a GpuKernels, runs: Vec<LoraRun<'a>> },
}

impl<'a> Routes<'a> {
    /// Makes the routes over `layers` decoder blocks on `kernels` for sequences with these rows and adapters, in the
    /// order of the rows. Neighbouring sequences of one adapter share its products.
    pub fn new(
        layers: usize,
        kernels: &'a Kernels,
        sequences: impl IntoIterator<Item = (Range<usize>, Option<&'a Adapter>)>,
    ) -> Result<Self> {
        let runs = runs(sequences);
        let layers = if runs.is_empty() { 0 } else { layers };
        let groups = (0..layers).flat_map(|layer| GROUPS.map(|sites| (layer, sites)));
        let has = |(layer, sites): (usize, &[Site])| {
            let mut pairs = runs.iter().filter_map(|(_, adapter)| adapter.layers.get(layer));
            pairs.any(|pairs| sites.iter().any(|site| pairs.get(*site).is_some()))
        };
        let changes = groups.clone().map(has).collect();
        let products = if let Some(kernels) = kernels.gpu() {
            let run = |(rows, adapter): &(Range<usize>, &'a Adapter)| -> Result<LoraRun<'a>> {
                Ok(LoraRun { rows: rows.clone(), pointers: adapter.pointers()? })
            };
            Products::Gpu { kernels, runs: runs.iter().map(run).collect::<Result<_>>()? }
        } else {
            let (mut tasks, mut starts) = (Vec::new(), vec![0]);
            for (layer, sites) in groups {
                tasks.extend(runs.iter().flat_map(|(rows, adapter)| tasks_of(rows, adapter, layer, sites)));
                starts.push(tasks.len());
            }
            Products::Cpu { tasks, starts }
        };
        Ok(Self { runs, changes, products })
    }

    /// Returns true if something is added at the group of sites that begins with `first`.
    pub fn change(&self, layer: usize, first: Site) -> bool {
        index(layer, first).and_then(|index| self.changes.get(index).copied()).unwrap_or(false)
    }

    /// Adds the adapters' parts to `outputs` `[rows, out]`: the base's products of `x` `[rows, in]` with the layers of
    /// the group of sites that begins with `first`, fresh tensors that nothing else holds.
    pub fn add(&self, layer: usize, first: Site, x: &Tensor, outputs: &mut [Tensor]) -> Result<()> {
        if !self.change(layer, first) {
            return Ok(());
        }
        match &self.products {
            Products::Cpu { .. } => cpu::lora::add(outputs, x, self.tasks(layer, first)),
            Products::Gpu { kernels, runs } => kernels.add_lora_runs(outputs, x, runs, layer, first),
        }
    }

    /// Adds the adapters' parts to `outputs` `[rows of the group, out]`: the base's products of `x`
    /// `[rows of the group, in]` with the layers at `sites` of an expert, fresh tensors that nothing else holds. The group
    /// are the rows of the step that go through the expert, in order.
    pub fn add_of_expert(
        &self,
        layer: usize,
        (expert, group): (usize, &[u32]),
        sites: &[Site],
        x: &Tensor,
        outputs: &mut [Tensor],
    ) -> Result<()> {
        let mut tasks: Vec<LoraRows<'_>> = Vec::new();
        for (rows, adapter) in &self.runs {
            let Some(updates) = adapter.layers.get(layer) else { continue };
            // In order, those of one adapter stand next to each other.
            let place = |row: usize| group.partition_point(|other| (*other as usize) < row);
            let rows = place(rows.start)..place(rows.end);
            let pairs = sites.iter().enumerate();
            let pairs = pairs.filter_map(|(output, site)| Some((output, updates.expert(expert, *site)?)));
            tasks.extend(pairs.map(|(output, pair)| LoraRows { rows: rows.clone(), output, pair }));
        }
        tasks.retain(|task| !task.rows.is_empty());
        match &self.products {
            _ if tasks.is_empty() => Ok(()),
            Products::Cpu { .. } => cpu::lora::add(outputs, x, &tasks),
            Products::Gpu { .. } => tasks.iter().try_for_each(|task| {
                outputs[task.output] = added_to_rows(&outputs[task.output], x, task)?;
                Ok(())
            }),
        }
    }

    fn tasks(&self, layer: usize, first: Site) -> &[LoraRows<'a>] {
        let Products::Cpu { tasks, starts } = &self.products else { return &[] };
        let range = index(layer, first).and_then(|index| starts.get(index..index + 2));
        range.map_or(&[], |range| &tasks[range[0]..range[1]])
    }
}

/// Computes `output` `[rows, out]` with the update of `task` added to its rows, in f32; the others stay as they are.
fn added_to_rows(output: &Tensor, x: &Tensor, task: &LoraRows<'_>) -> Result<Tensor> {
    let LoraRows { rows, pair, .. } = task;
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32);
    let part = |tensor: &Tensor, rows: &Range<usize>| tensor.narrow(0, rows.start, rows.len())?.contiguous();
    let shrunk = wide(&part(x, rows)?)?.matmul(&wide(&pair.a)?.t()?)?; // [rows, rank]
    let added = (shrunk * f64::from(pair.scale))?.matmul(&wide(&pair.b)?.t()?)?; // [rows, out]
    let changed = (wide(&part(output, rows)?)? + added)?.to_dtype(output.dtype())?;
    let [before, behind] = [0..rows.start, rows.end..output.dim(0)?].map(|rows| part(output, &rows));
    let parts: Vec<Tensor> = [before?, changed, behind?].into_iter().filter(|part| part.elem_count() > 0).collect();
    Ok(Tensor::cat(&parts, 0)?)
}

/// Returns the index, over all layers, of the group of sites that begins with `first`; `None` if no group does.
fn index(layer: usize, first: Site) -> Option<usize> {
    let group = GROUPS.iter().position(|sites| sites[0] == first)?;
    Some(layer * GROUPS.len() + group)
}

/// Returns the updates of `adapter` to `rows` at `sites` of `layer`, cut into tasks.
fn tasks_of<'a>(
    rows: &Range<usize>,
    adapter: &'a Adapter,
    layer: usize,
    sites: &'static [Site],
) -> impl Iterator<Item = LoraRows<'a>> {
    let pairs = sites
        .iter()
        .enumerate()
        .filter_map(move |(output, site)| Some((output, adapter.layers.get(layer)?.get(*site)?)));
    let rows = rows.clone();
    pairs.flat_map(move |(output, pair)| pieces(&rows).map(move |rows| LoraRows { rows, output, pair }))
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

/// Splits `rows` into even pieces, enough for all cores.
fn pieces(rows: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let most = rows.len().div_ceil(rayon::current_num_threads()).clamp(FEW_ROWS, TASK_ROWS);
    let count = rows.len().div_ceil(most).max(1);
    let (start, length) = (rows.start, rows.len());
    (0..count).map(move |piece| start + length * piece / count..start + length * (piece + 1) / count)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::lora::{LoraLayer, LoraPair};

    fn adapter(sites: &[&[Site]]) -> Adapter {
        let matrix = || Tensor::zeros((1, 1), DType::F32, &Device::Cpu).expect("a tensor");
        let layer = |sites: &&[Site]| {
            let mut layer = LoraLayer::default();
            for site in *sites {
                layer.set(*site, LoraPair { a: matrix(), b: matrix(), scale: 1.0 });
            }
            layer
        };
        Adapter::new(String::new(), sites.iter().map(layer).collect())
    }

    fn shape(tasks: &[LoraRows<'_>]) -> Vec<(Range<usize>, usize)> {
        tasks.iter().map(|task| (task.rows.clone(), task.output)).collect()
    }

    #[test]
    fn neighbours_of_one_adapter_are_one_run_and_absent_sites_are_left_out() {
        let (one, two) = (adapter(&[&[Site::Value, Site::Up], &[]]), adapter(&[&[Site::Query], &[Site::Down]]));
        let sequences = [(0..1, Some(&one)), (1..2, None), (2..4, Some(&two)), (4..5, Some(&two)), (5..6, Some(&one))];
        let routes = Routes::new(2, &Kernels::Cpu, sequences).expect("routes");
        assert_eq!(shape(routes.tasks(0, Site::Query)), [(0..1, 2), (2..5, 0), (5..6, 2)]);
        assert_eq!(shape(routes.tasks(0, Site::Gate)), [(0..1, 1), (5..6, 1)]);
        assert_eq!(shape(routes.tasks(1, Site::Down)), [(2..5, 0)]);
        assert!(routes.change(0, Site::Query) && routes.change(1, Site::Down));
        assert!(!routes.change(0, Site::Output) && !routes.change(1, Site::Query));
        let none = Routes::new(2, &Kernels::Cpu, [(0..4, None)]).expect("routes");
        assert!(!none.change(1, Site::Down) && none.tasks(1, Site::Down).is_empty());
    }

    #[test]
    fn long_runs_are_cut_without_gaps() {
        let one = adapter(&[&[Site::Output]]);
        let routes = Routes::new(1, &Kernels::Cpu, [(3..500, Some(&one))]).expect("routes");
        let tasks = shape(routes.tasks(0, Site::Output));
        assert!(tasks.len() > 8 && tasks.iter().all(|(rows, _)| !rows.is_empty() && rows.len() <= TASK_ROWS));
        assert!(tasks.windows(2).all(|pair| pair[0].0.end == pair[1].0.start));
        assert_eq!((tasks[0].0.start, tasks[tasks.len() - 1].0.end), (3, 500));
    }
}
