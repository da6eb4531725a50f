// Cross entropy over the vocabulary and its gradient, in place: one block for each row of products
// with the output head, of which logits are made.

struct CrossEntropy {
    // `[rows, classes]`; the gradient weights[row] · (softmax − onehot) · slope takes their place.
    element* products;
    const u32* targets;
    const float* weights;
    float* losses;
    // 1 if no class is more probable than the target.
    u8* correct;
    u32 classes;
    // Logits are cap · tanh(scale · product / cap); without a cap, which is 0, scale · product.
    float scale;
    float cap;
};

__device__ inline float logit_of(const CrossEntropy& arguments, element product) {
    return capped(wide(product) * arguments.scale, arguments.cap);
}

KERNEL(cross_entropy, CrossEntropy) {
    const u32 row = blockIdx.x;
    element* products = arguments.products + (u64)row * arguments.classes;
    const u32 target = arguments.targets[row];
    const float of_target = logit_of(arguments, products[target]);
    // Each thread's largest value and the sum beside it, then those of all threads.
    float largest = -INFINITE, sum = 0.0f, above = 0.0f;
    for (u32 i = threadIdx.x; i < arguments.classes; i += blockDim.x) {
        const float x = logit_of(arguments, products[i]);
        if (x > of_target) above = 1.0f;
        const float larger = fmaxf(largest, x);
        sum = sum * expf(largest - larger) + expf(x - larger);
        largest = larger;
    }
    __shared__ float largest_of_warps[WARP];
    const float of_warp = warp_max(largest);
    if (lane_of_warp() == 0) largest_of_warps[threadIdx.x / WARP] = of_warp;
    __syncthreads();
    const float all = warp_max(lane_of_warp() < blockDim.x / WARP ? largest_of_warps[lane_of_warp()] : -INFINITE);
    // A thread without a class has largest −∞ and sum 0.
    sum = block_sum(sum == 0.0f ? 0.0f : sum * expf(largest - all));
    above = block_sum(above);
    if (threadIdx.x == 0) {
        arguments.losses[row] = logf(sum) + all - of_target;
        arguments.correct[row] = above == 0.0f;
    }
    __syncthreads(); // All threads have read the target's logit.
    const float weight = arguments.weights[row];
    for (u32 i = threadIdx.x; i < arguments.classes; i += blockDim.x) {
        const float logit = logit_of(arguments, products[i]), probability = expf(logit - all) / sum;
        const float slope = arguments.scale * cap_slope(logit, arguments.cap);
        products[i] = narrow(weight * slope * (probability - (i == target ? 1.0f : 0.0f)));
    }
}
