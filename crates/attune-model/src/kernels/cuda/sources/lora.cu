// The low-rank parts of all adapters of a step, in two launches whatever their number and ranks: for each task, `shrink`
// computes s · A x, and `expand` adds B times this to the task's rows (Chen et al., "Punica", 2023; Sheng et al.,
// "S-LoRA", 2023).

// Rows of A that a block takes together, and its warps.
const u32 RANKS = 4;
const u32 WARPS = 8;

// Computes the thread's part of the products of `x` with RANKS rows of A; beyond the last row, the last one is used
// again.
__device__ inline void multiply_rows(float* sums, const element* x, const element* a, u32 first, u32 rank, u32 length) {
    const element* rows[RANKS];
    UNROLL for (u32 r = 0; r < RANKS; r++) {
        sums[r] = 0.0f;
        rows[r] = a + (u64)min(first + r, rank - 1) * length;
    }
    if (length % VECTOR == 0) {
#pragma unroll 2
        for (u32 i = threadIdx.x; i < length / VECTOR; i += blockDim.x) {
            const Vector values = ((const Vector*)x)[i];
            UNROLL for (u32 r = 0; r < RANKS; r++) {
                const Vector row = ((const Vector*)rows[r])[i];
                UNROLL for (u32 j = 0; j < VECTOR; j++) sums[r] += wide(values.values[j]) * wide(row.values[j]);
            }
        }
    } else {
        for (u32 i = threadIdx.x; i < length; i += blockDim.x)
            UNROLL for (u32 r = 0; r < RANKS; r++) sums[r] += wide(x[i]) * wide(rows[r][i]);
    }
}

// Blocks: (tasks, groups of RANKS ranks). All threads share each product: inputs are long, tasks and ranks may be few.
KERNEL(shrink, Lora) {
    const Task& task = arguments.tasks[blockIdx.x];
    const u32 first = blockIdx.y * RANKS;
    if (first >= task.rank) return;
    __shared__ float of_warps[WARPS][RANKS];
    for (u32 i = 0; i < task.rows; i++) {
        const u64 row = task.start + i;
        float sums[RANKS];
        multiply_rows(sums, arguments.x + row * arguments.input, task.a, first, task.rank, arguments.input);
        __syncthreads(); // All threads have read the previous row's sums.
        UNROLL for (u32 r = 0; r < RANKS; r++) {
            const float sum = warp_sum(sums[r]);
            if (lane_of_warp() == 0) of_warps[threadIdx.x / WARP][r] = sum;
        }
        __syncthreads();
        const u32 rank = first + threadIdx.x;
        if (threadIdx.x >= RANKS || rank >= task.rank) continue;
        float sum = 0.0f;
        for (u32 warp = 0; warp < WARPS; warp++) sum += of_warps[warp][threadIdx.x];
        arguments.shrunk[((u64)task.output * arguments.all_rows + row) * arguments.most + rank] = sum * task.scale;
    }
}

// Returns a · b, computed by one thread.
__device__ inline float thread_dot(const element* a, const float* b, u32 length) {
    float sum = 0.0f;
    if (length % VECTOR == 0) {
        const Vector* vectors = (const Vector*)a;
#pragma unroll 4
        for (u32 i = 0; i < length / VECTOR; i++) {
            const Vector vector = vectors[i];
            UNROLL for (u32 j = 0; j < VECTOR; j++) sum += wide(vector.values[j]) * b[i * VECTOR + j];
        }
    } else {
        for (u32 i = 0; i < length; i++) sum += wide(a[i]) * b[i];
    }
    return sum;
}

// Blocks: (tasks, columns of the widest output). Each thread takes one row of B, one column of the output.
KERNEL(expand, Lora) {
    const Task& task = arguments.tasks[blockIdx.x];
    const u32 width = arguments.widths[task.output];
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const element* b = task.b + (u64)column * task.rank;
    for (u32 i = 0; i < task.rows; i++) {
        const u64 row = task.start + i;
        const float* shrunk = arguments.shrunk + ((u64)task.output * arguments.all_rows + row) * arguments.most;
        const float sum = thread_dot(b, shrunk, task.rank);
        element* y = arguments.outputs[task.output] + row * width + column;
        // An adapter whose B is 0 changes no bit, not even the sign of a zero.
        if (sum != 0.0f) *y = narrow(wide(*y) + sum);
    }
}
