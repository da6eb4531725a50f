// Draws a token for each row of logits: the most probable one, or one by its probability. One block for each row.

struct Draw {
    const element* logits;     // [rows, classes]
    const float* temperatures; // [rows]; 0 takes the most probable token, of equals the first
    const double* points;      // [rows], 0 to 1: where all weights laid end to end are cut
    u32* tokens;               // [rows]; NONE where a logit is no finite number
    u32 classes;
};

const u32 NONE = 0xffffffffu;
const u32 MOST_THREADS = 512;

__device__ inline bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

struct Cut {
    const element* logits;
    float largest;
    float temperature;
};

__device__ inline double weight_of(const Cut& cut, u32 token) { return expf((wide(cut.logits[token]) - cut.largest) / cut.temperature); }

__device__ inline double weights_of(const Cut& cut, u32 first, u32 end) {
    double sum = 0.0;
    for (u32 token = first; token < end; token++) sum += weight_of(cut, token);
    return sum;
}

// The first of `count` pieces that reaches beyond `rest`, the last with any weight where none does; `rest` is then within it.
__device__ inline u32 piece_at(const double* sums, u32 count, double& rest) {
    u32 chosen = 0;
    for (u32 i = 0; i < count; i++) {
        if (sums[i] <= 0.0) continue;
        chosen = i;
        if (sums[i] > rest) break;
        rest -= sums[i];
    }
    return chosen;
}

KERNEL(draw, Draw) {
    const u32 row = blockIdx.x, classes = arguments.classes;
    Cut cut = {arguments.logits + (u64)row * classes, -INFINITE, arguments.temperatures[row]};
    u32 position = NONE;
    float broken = 0.0f;
    for (u32 i = threadIdx.x; i < classes; i += blockDim.x) {
        const float x = wide(cut.logits[i]);
        if (!is_finite(x)) broken = 1.0f;
        if (x > cut.largest) {
            cut.largest = x;
            position = i;
        }
    }
    for (u32 other = WARP / 2; other > 0; other /= 2) {
        const float x = __shfl_xor_sync(WHOLE_WARP, cut.largest, other);
        const u32 place = __shfl_xor_sync(WHOLE_WARP, position, other);
        if (x > cut.largest || (x == cut.largest && place < position)) {
            cut.largest = x;
            position = place;
        }
    }
    __shared__ float largests[WARP];
    __shared__ u32 positions[WARP];
    if (lane_of_warp() == 0) {
        largests[threadIdx.x / WARP] = cut.largest;
        positions[threadIdx.x / WARP] = position;
    }
    broken = block_sum(broken); // It waits for all threads.
    for (u32 warp = 0; warp < blockDim.x / WARP; warp++)
        if (largests[warp] > cut.largest || (largests[warp] == cut.largest && positions[warp] < position)) {
            cut.largest = largests[warp];
            position = positions[warp];
        }
    if (broken != 0.0f || cut.temperature <= 0.0f) {
        if (threadIdx.x == 0) arguments.tokens[row] = broken != 0.0f ? NONE : position;
        return;
    }

    // A piece of all tokens for each thread, then a part of the chosen piece for each lane, then its tokens.
    __shared__ double sums[MOST_THREADS];
    __shared__ double rest;
    __shared__ u32 chosen;
    const u32 piece = (classes + blockDim.x - 1) / blockDim.x;
    const u32 first = min(classes, threadIdx.x * piece);
    sums[threadIdx.x] = weights_of(cut, first, min(classes, first + piece));
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0;
        for (u32 i = 0; i < blockDim.x; i++) total += sums[i];
        double within = arguments.points[row] * total;
        chosen = piece_at(sums, blockDim.x, within);
        rest = within;
    }
    __syncthreads();
    const u32 begin = min(classes, chosen * piece), end = min(classes, begin + piece);
    const u32 part = (piece + WARP - 1) / WARP;
    if (threadIdx.x < WARP) {
        const u32 from = min(end, begin + threadIdx.x * part);
        sums[threadIdx.x] = weights_of(cut, from, min(end, from + part));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double within = rest;
        const u32 from = begin + piece_at(sums, WARP, within) * part;
        u32 token = from;
        for (u32 i = from; i < min(end, from + part); i++) {
            const double weight = weight_of(cut, i);
            if (weight <= 0.0) continue;
            token = i;
            if (weight > within) break;
            within -= weight;
        }
        arguments.tokens[row] = token;
    }
}
