// AdamW for all matrices of an adapter together, and the norm of their gradients. Everything is in float, whatever
// ELEMENT is.

// A gradient, and the place of its parameters among all of them.
struct Piece {
    const float* gradient;
    u64 start;
    u64 count;
};

const u32 PIECES = 128;
const u32 SQUARES_THREADS = 256;

struct Squares {
    double* sums; // [pieces, blocks of each], the sums of the gradients' squares
    Piece pieces[PIECES];
};

// Blocks: (pieces, shares of each).
KERNEL(squares, Squares) {
    const Piece& piece = arguments.pieces[blockIdx.x];
    double sum = 0.0;
    for (u64 i = (u64)blockIdx.y * blockDim.x + threadIdx.x; i < piece.count; i += (u64)gridDim.y * blockDim.x)
        sum += (double)piece.gradient[i] * piece.gradient[i];
    __shared__ double sums[SQUARES_THREADS];
    sums[threadIdx.x] = sum;
    for (u32 other = SQUARES_THREADS / 2; other > 0; other /= 2) {
        __syncthreads();
        if (threadIdx.x < other) sums[threadIdx.x] += sums[threadIdx.x + other];
    }
    if (threadIdx.x == 0) arguments.sums[(u64)blockIdx.x * gridDim.y + blockIdx.y] = sums[0];
}

// Factors of a step; see `train/optimizer.rs` for the formula.
struct Coefficients {
    float clip, keep, step_size, root_correction, decay1, gain1, decay2, gain2, epsilon;
};

struct AdamW {
    float* values; // [all parameters], like their moments
    float* first;
    float* second;
    Coefficients by;
    Piece pieces[PIECES];
};

// Blocks: (pieces, shares of each).
KERNEL(adam_w, AdamW) {
    const Piece& piece = arguments.pieces[blockIdx.x];
    const Coefficients& by = arguments.by;
    for (u64 i = (u64)blockIdx.y * blockDim.x + threadIdx.x; i < piece.count; i += (u64)gridDim.y * blockDim.x) {
        const u64 place = piece.start + i;
        const float g = piece.gradient[i] * by.clip;
        const float m = by.decay1 * arguments.first[place] + by.gain1 * g;
        const float v = by.decay2 * arguments.second[place] + by.gain2 * g * g;
        arguments.first[place] = m;
        arguments.second[place] = v;
        arguments.values[place] = arguments.values[place] * by.keep - by.step_size * m / (sqrtf(v) / by.root_correction + by.epsilon);
    }
}
