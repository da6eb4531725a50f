//! Scales that lie over a matrix as a grid: one for all, one for each row, or one for each block. Used by the formats
//! whose weights are one number each.

use super::module::Module;

/// A grid of scales.
pub(super) struct Grid {
    /// Rows and columns of the matrix under one scale; the last ones may be smaller.
    pub block: [usize; 2],
    /// Scales of a row of blocks.
    pub columns: usize,
    /// Row of blocks by row of blocks.
    pub scales: Vec<f32>,
}

impl Grid {
    /// Reads the scales that end with `suffix`. Their shape says what each covers; only that of blocks does not, whose
    /// size `block` is that of the configuration.
    pub(super) fn read(module: &Module<'_, '_>, suffix: &str, block: Option<[usize; 2]>) -> Result<Self, String> {
        let [outputs, inputs] = [module.outputs, module.inputs];
        let view = module.tensor(suffix)?;
        // ModelOpt writes the places within a block as dimensions of 1.
        let shape = match *view.shape() {
            [rows, 1, columns, 1] if block.is_some() => vec![rows, columns],
            _ => view.shape().to_vec(),
        };
        let scales = module.numbers(suffix, &view)?;
        if let (Some([rows, columns]), [_, _]) = (block, &shape[..]) {
            let expected = [outputs.div_ceil(rows), inputs.div_ceil(columns)];
            if shape == expected {
                return Ok(Self { block: [rows, columns], columns: expected[1], scales });
            }
        }
        match shape[..] {
            [] | [1] | [1, 1] => Ok(Self { block: [outputs, inputs], columns: 1, scales }),
            [rows] | [rows, 1] if rows == outputs => Ok(Self { block: [1, inputs], columns: 1, scales }),
            _ => {
                let blocks = block.map_or(String::new(), |block| format!(" or for blocks of {block:?}"));
                let expected = format!("one scale, one for each of {outputs} rows{blocks}");
                Err(module.fault(suffix, &format!("has shape {:?}, expected {expected}", view.shape())))
            }
        }
    }

    /// Returns the scale of a place.
    pub(super) fn at(&self, output: usize, input: usize) -> f32 {
        self.scales[output / self.block[0] * self.columns + input / self.block[1]]
    }

    /// Returns the inputs that share a scale, and the scales of all rows, `[outputs, groups]`.
    pub(super) fn of_rows(&self, outputs: usize) -> (usize, Vec<f32>) {
        let row = |output: usize| {
            let start = output / self.block[0] * self.columns;
            self.scales[start..start + self.columns].iter().copied()
        };
        (self.block[1], (0..outputs).flat_map(row).collect())
    }
}
