// Products of a few rows, ROWS, with weights, which decoding for few sequences consists of. The weights are read once,
// and reading them is all that should take time. One launch takes up to three weights with the same input, the norm
// before them and the gated activation after them.

const u32 MATRICES = 3;
// Rows of weights that a warp takes at a time: they share the work on the input.
const u32 TOGETHER = 4;

struct Matrix {
    const element* weight;   // [width, input]
    const element* bias;     // [width], or null
    const element* residual; // [ROWS, width], or null
    element* y;              // [ROWS, width]
    u64 width;
};

struct Gemv {
    const element* x;  // [ROWS, input]
    const float* norm; // [input], the weight of an RMS norm of the input; or null
    // Each gives its product; but if `gated`, the first two are gate and up, and the first one's y is
    // activation(gate) · up.
    Matrix matrices[MATRICES];
    u32 count;
    u32 input;
    u32 gated;
    float eps; // Of the norm.
    u32 activation;
};

// Adds the lane's part of the products of each row of the input with `weights`. With a norm, the products are not yet
// divided by the root of the mean of the `squares`, which are added up too.
template <bool NORMED>
__device__ inline void multiply_rows(const Gemv& arguments, const Vector* const* weights, float (*sums)[ROWS], float* squares) {
    const u32 vectors = arguments.input / VECTOR;
    const Vector* x = (const Vector*)arguments.x;
#pragma unroll 2
    for (u32 i = lane_of_warp(); i < vectors; i += WARP) {
        Vector weight[TOGETHER];
        UNROLL for (u32 t = 0; t < TOGETHER; t++) weight[t] = weights[t][i];
        Floats norm = {};
        if (NORMED) norm = ((const Floats*)arguments.norm)[i];
        UNROLL for (u32 r = 0; r < ROWS; r++) {
            const Vector row = x[(u64)r * vectors + i];
            UNROLL for (u32 j = 0; j < VECTOR; j++) {
                float value = wide(row.values[j]);
                if (NORMED) {
                    squares[r] += value * value;
                    value *= norm.values[j];
                }
                UNROLL for (u32 t = 0; t < TOGETHER; t++) sums[t][r] += wide(weight[t].values[j]) * value;
            }
        }
    }
}

// Returns the product at `row` of the matrix plus its bias and residual.
__device__ inline float whole(const Matrix& matrix, u64 row, u32 r, float sum) {
    if (matrix.bias != 0) sum += wide(matrix.bias[row]);
    if (matrix.residual != 0) sum += wide(matrix.residual[r * matrix.width + row]);
    return sum;
}

KERNEL(gemv, Gemv) {
    const bool gated = arguments.gated != 0;
    const u32 each = gated ? TOGETHER / 2 : TOGETHER, count = gated ? 1 : arguments.count;
    u64 first = ((u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP) * each;
    u32 index = 0;
    for (; index < count; index++) {
        const u64 taken = (arguments.matrices[index].width + each - 1) / each * each;
        if (first < taken) break;
        first -= taken;
    }
    if (index == count) return;
    const Matrix &matrix = arguments.matrices[index], &second = arguments.matrices[gated ? 1 : index];

    const Vector* weights[TOGETHER];
    UNROLL for (u32 t = 0; t < TOGETHER; t++) {
        // Beyond the last row, the last one is read again.
        const u64 row = gated ? first + t % (TOGETHER / 2) : first + t;
        const element* weight = gated && t >= TOGETHER / 2 ? second.weight : matrix.weight;
        weights[t] = (const Vector*)(weight + min(row, matrix.width - 1) * arguments.input);
    }
    float sums[TOGETHER][ROWS] = {}, squares[ROWS] = {};
    if (arguments.norm != 0)
        multiply_rows<true>(arguments, weights, sums, squares);
    else
        multiply_rows<false>(arguments, weights, sums, squares);

    UNROLL for (u32 r = 0; r < ROWS; r++) {
        const float inverse = arguments.norm == 0 ? 1.0f : 1.0f / sqrtf(warp_sum(squares[r]) / arguments.input + arguments.eps);
        float products[TOGETHER];
        UNROLL for (u32 t = 0; t < TOGETHER; t++) products[t] = warp_sum(sums[t][r]) * inverse;
        UNROLL for (u32 t = 0; t < TOGETHER; t++) {
            const u64 row = first + t;
            if (lane_of_warp() != t || t >= each || row >= matrix.width) continue;
            element y = narrow(whole(matrix, row, r, products[t]));
            if (gated) y = gated_of(y, narrow(whole(second, row, r, products[(t + TOGETHER / 2) % TOGETHER])), arguments.activation);
            matrix.y[r * matrix.width + row] = y;
        }
    }
}
