//! Attaches a hand-written backward to a value that was computed without a graph.
//!
//! candle's fused kernels (`rms_norm`, `softmax_last_dim`, `rope`, quantized matmul) return `Ok` from `backward()` with
//! the upstream gradient missing, and its plain matmul computes the gradient of frozen weights too. A grafted value is
//! computed by whatever kernel is fastest and has exactly the gradient that it is given.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, backend::BackendStorage,
};

/// The gradient of a value with respect to its input: `dL/dy -> dL/dx`.
type Backward = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

struct Graft {
    value: Tensor,
    backward: Backward,
}

impl CustomOp1 for Graft {
    fn name(&self) -> &'static str {
        "graft"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, self.value.shape().clone())),
            _ => candle_core::bail!("a grafted value must stay on its input's device"),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, self.value.shape().clone())),
            _ => candle_core::bail!("a grafted value must stay on its input's device"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(&grad.contiguous()?).map(Some)
    }
}

/// `value`, computed from `x.detach()`, as a function of `x` whose gradient is `backward`. Costs nothing where `x`
/// carries no graph. `value` must be contiguous.
pub fn graft(
    x: &Tensor,
    value: Tensor,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(value);
    }
    x.apply_op1(Graft { value: value.contiguous()?, backward: Box::new(backward) })
}
