// Products of a few rows, ROWS, with weights: what decoding for few sequences consists of. The weights are read once, and reading
// them is all that takes time. One warp for each row of a weight; up to three weights that have the same input in one launch.

const u32 MATRICES = 3;

struct Matrix {
    const element* weight;   // [width, input]
    const element* bias;     // [width], or none
    const element* residual; // [ROWS, width], or none
    element* y;              // [ROWS, width]
    u64 width;
};

struct Gemv {
    const element* x; // [ROWS, input]
    Matrix matrices[MATRICES];
    u32 count;
    u32 input;
};

KERNEL(gemv, Gemv) {
    u64 row = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    u32 index = 0;
    while (index < arguments.count && row >= arguments.matrices[index].width) row -= arguments.matrices[index++].width;
    if (index == arguments.count) return;
    const Matrix& matrix = arguments.matrices[index];
    const u32 vectors = arguments.input / VECTOR;
    const Vector* weight = (const Vector*)(matrix.weight + row * arguments.input);
    const Vector* x = (const Vector*)arguments.x;
    float sums[ROWS] = {0.0f};
#pragma unroll 4
    for (u32 i = lane_of_warp(); i < vectors; i += WARP) {
        const Vector w = weight[i];
        UNROLL for (u32 r = 0; r < ROWS; r++) {
            const Vector values = x[(u64)r * vectors + i];
            UNROLL for (u32 j = 0; j < VECTOR; j++) sums[r] += wide(w.values[j]) * wide(values.values[j]);
        }
    }
    UNROLL for (u32 r = 0; r < ROWS; r++) {
        float sum = warp_sum(sums[r]);
        if (lane_of_warp() != 0) continue;
        const u64 place = r * matrix.width + row;
        if (matrix.bias != 0) sum += wide(matrix.bias[row]);
        if (matrix.residual != 0) sum += wide(matrix.residual[place]);
        matrix.y[place] = narrow(sum);
    }
}
