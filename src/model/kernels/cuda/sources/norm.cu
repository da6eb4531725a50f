// RMS norm and its gradient (Zhang and Sennrich, 2019). One block for each row; the weight is in float.

struct RmsNorm {
    const element* x;
    const float* weight;
    element* y;
    u32 width;
    float eps;
};

KERNEL(rms_norm, RmsNorm) {
    const u64 row = (u64)blockIdx.x * arguments.width;
    const element* x = arguments.x + row;
    float squares = 0.0f;
    for (u32 i = threadIdx.x; i < arguments.width; i += blockDim.x) squares += wide(x[i]) * wide(x[i]);
    const float inverse = 1.0f / sqrtf(block_sum(squares) / arguments.width + arguments.eps);
    for (u32 i = threadIdx.x; i < arguments.width; i += blockDim.x)
        arguments.y[row + i] = narrow(wide(x[i]) * inverse * arguments.weight[i]);
}

struct RmsNormBackward {
    const element* x;
    const float* weight;
    const element* dy;
    element* dx;
    u32 width;
    float eps;
};

// With r = 1 / rms(x) and g = dy · weight: dx = r · g − x · r³ · mean(g · x).
KERNEL(rms_norm_backward, RmsNormBackward) {
    const u64 row = (u64)blockIdx.x * arguments.width;
    const element* x = arguments.x + row;
    const element* dy = arguments.dy + row;
    float squares = 0.0f, products = 0.0f;
    for (u32 i = threadIdx.x; i < arguments.width; i += blockDim.x) {
        squares += wide(x[i]) * wide(x[i]);
        products += wide(dy[i]) * arguments.weight[i] * wide(x[i]);
    }
    const float inverse = 1.0f / sqrtf(block_sum(squares) / arguments.width + arguments.eps);
    const float shared = block_sum(products) / arguments.width * inverse * inverse * inverse;
    for (u32 i = threadIdx.x; i < arguments.width; i += blockDim.x)
        arguments.dx[row + i] = narrow(wide(dy[i]) * arguments.weight[i] * inverse - wide(x[i]) * shared);
}
