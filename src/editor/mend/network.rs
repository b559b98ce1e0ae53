//! The editor's network of one weight shape.

use std::collections::HashMap;

use candle_core::{DType, Result, Tensor};

use super::statistics::Statistics;

/// One layer: `z + relu((U V z + b) * scale[mode] + shift[mode])`, with `D = d_in + d_out`.
///
/// The rectifier passes gradient 1 at exactly 0 (candle's does): at the start `U = 0`, every pre-activation is 0, and with
/// a gradient of 0 there the network would never train.
#[derive(Clone)]
pub struct Layer {
    /// `[D, r]`
    pub u: Tensor,
    /// `[r, D]`
    pub v: Tensor,
    /// `[D]`
    pub bias: Tensor,
    /// `[modes, D]`
    pub scale: Tensor,
    /// `[modes, D]`
    pub shift: Tensor,
}

/// The names of a layer's tensors, as the reference has them.
pub struct LayerNames {
    pub u: String,
    pub v: String,
    pub bias: String,
    pub scale: String,
    pub shift: String,
}

impl LayerNames {
    /// Names in layer `index` of the network of this shape.
    pub fn new((d_in, d_out): (usize, usize), index: usize) -> Self {
        let name = |part: &str| format!("net.{d_in}x{d_out}.mlp.layers.{index}.{part}");
        Self {
            u: name("u"),
            v: name("v"),
            bias: name("bias"),
            scale: name("mode_scale.weight"),
            shift: name("mode_shift.weight"),
        }
    }
}

impl Layer {
    /// `z [n, D]`, `modes [n]`.
    fn forward(&self, z: &Tensor, modes: &Tensor) -> Result<Tensor> {
        let pre = z.matmul(&self.v.t()?)?.matmul(&self.u.t()?)?.broadcast_add(&self.bias)?;
        let scaled = (pre * self.scale.index_select(modes, 0)?)?;
        let shifted = (scaled + self.shift.index_select(modes, 0)?)?;
        z + shifted.relu()?
    }
}

/// Two layers over the normalised factors of one weight shape.
#[derive(Clone)]
pub struct Network {
    /// `(d_in, d_out)`
    pub shape: (usize, usize),
    pub layers: Vec<Layer>,
    pub statistics: Statistics,
}

/// Gets a tensor by name, of a given shape and as a given type, or says why not.
pub(super) type Take<'a> = dyn Fn(&str, &[usize], DType) -> std::result::Result<Tensor, String> + 'a;

/// How many layers the network has (config/alg/mend.yaml: `n_hidden: 1` and the output layer).
pub const LAYERS: usize = 2;

impl Network {
    /// `u [n, d_in]`, `delta [n, d_out]`, the mode of each row -> `(u~, delta~)` of the same shapes.
    pub fn forward(&self, u: &Tensor, delta: &Tensor, modes: &[u32]) -> Result<(Tensor, Tensor)> {
        let (d_in, d_out) = self.shape;
        let normal = self.statistics.normal(u.device())?;
        let mut z = Tensor::cat(&[normal.u(u)?, normal.delta(delta)?], 1)?;
        let modes = Tensor::new(modes, u.device())?;
        for layer in &self.layers {
            z = layer.forward(&z, &modes)?;
        }
        Ok((z.narrow(1, 0, d_in)?, z.narrow(1, d_in, d_out)?))
    }

    /// Reads layers and statistics; `take` gets a tensor of a given shape.
    pub(super) fn from_tensors(
        shape: (usize, usize),
        modes: usize,
        tensors: &HashMap<String, Tensor>,
        take: &Take<'_>,
    ) -> std::result::Result<Self, String> {
        let width = shape.0 + shape.1;
        let layers = (0..LAYERS)
            .map(|index| {
                let names = LayerNames::new(shape, index);
                let v = tensors.get(&names.v).ok_or_else(|| format!("tensor {:?} is missing", names.v))?;
                let rank = v.dims().first().copied().unwrap_or(0);
                Ok(Layer {
                    u: take(&names.u, &[width, rank], DType::F32)?,
                    v: take(&names.v, &[rank, width], DType::F32)?,
                    bias: take(&names.bias, &[width], DType::F32)?,
                    scale: take(&names.scale, &[modes, width], DType::F32)?,
                    shift: take(&names.shift, &[modes, width], DType::F32)?,
                })
            })
            .collect::<std::result::Result<_, String>>()?;
        Ok(Self { shape, layers, statistics: Statistics::from_tensors(shape, take)? })
    }

    pub(super) fn insert_tensors(&self, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        for (index, layer) in self.layers.iter().enumerate() {
            let names = LayerNames::new(self.shape, index);
            tensors.insert(names.u, layer.u.detach());
            tensors.insert(names.v, layer.v.detach());
            tensors.insert(names.bias, layer.bias.detach());
            tensors.insert(names.scale, layer.scale.detach());
            tensors.insert(names.shift, layer.shift.detach());
        }
        self.statistics.insert_tensors(self.shape, tensors)
    }
}
