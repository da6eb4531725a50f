// The kernels of `lora.cu` by matrix units, for bf16 and f16 and tasks of many rows: prompts, and training. Widths and
// ranks are even, and the input's width is a multiple of eight. Between the two launches, values are in the same type,
// `[outputs, all rows, most]` with `most` a multiple of 16, zero beyond a task's rank.

const u32 SHRINK_WARPS = 8;
const u32 SIDE = 16; // Rows of a fragment, and ranks that a block of `shrink_tiles` takes.

// Eight neighbours of a row, as pairs.
struct __align__(16) Pairs {
    u32 values[4];
};

// Blocks: (tasks, ranks / 16 · rows / 16). Each warp has a share of the input's columns; their sums are added up at the
// end.
KERNEL(shrink_tiles, Lora) {
    const Task& task = arguments.tasks[blockIdx.x];
    const u32 blocks_of_ranks = arguments.most / SIDE;
    const u32 first_rank = blockIdx.y % blocks_of_ranks * SIDE, first_row = blockIdx.y / blocks_of_ranks * SIDE;
    if (first_rank >= task.rank || first_row >= task.rows) return;
    const u32 lane = lane_of_warp(), warp = threadIdx.x / WARP;
    const u32 group = lane / 4, column = lane % 4 * 8;
    const element *x[2], *a[2];
    UNROLL for (u32 i = 0; i < 2; i++) {
        const u64 row = task.start + min(first_row + group + i * 8, task.rows - 1);
        const u64 rank = min(first_rank + group + i * 8, (u32)task.rank - 1);
        x[i] = arguments.x + row * arguments.input + column;
        a[i] = task.a + rank * arguments.input + column;
    }
    float sums[2][4] = {};
    const Pairs none = {};
#pragma unroll 4
    for (u32 k = warp * WARP; k < arguments.input; k += SHRINK_WARPS * WARP) {
        // A lane takes eight neighbours for the four pairs of a fragment, left and right alike, so the sum is the same.
        const bool within = k + column < arguments.input;
        Pairs left[2], right[2];
        UNROLL for (u32 i = 0; i < 2; i++) {
            left[i] = within ? *(const Pairs*)(x[i] + k) : none;
            right[i] = within ? *(const Pairs*)(a[i] + k) : none;
        }
        UNROLL for (u32 near = 0; near < 4; near += 2) {
            const u32 fragment[4] = {left[0].values[near], left[1].values[near], left[0].values[near + 1], left[1].values[near + 1]};
            UNROLL for (u32 i = 0; i < 2; i++) multiply(sums[i], fragment, right[i].values[near], right[i].values[near + 1]);
        }
    }
    __shared__ float of_warps[SHRINK_WARPS][SIDE][SIDE];
    UNROLL for (u32 i = 0; i < 2; i++)
        UNROLL for (u32 j = 0; j < 4; j++) of_warps[warp][group + j / 2 * 8][i * 8 + lane % 4 * 2 + j % 2] = sums[i][j];
    __syncthreads();
    // One thread for each place of a tile.
    const u32 row = first_row + threadIdx.x / SIDE, rank = first_rank + threadIdx.x % SIDE;
    if (row >= task.rows) return;
    float sum = 0.0f;
    for (u32 i = 0; i < SHRINK_WARPS; i++) sum += of_warps[i][threadIdx.x / SIDE][threadIdx.x % SIDE];
    const u64 place = (u64)task.output * arguments.all_rows + task.start + row;
    ((element*)arguments.shrunk)[place * arguments.most + rank] = narrow(rank < task.rank ? sum * task.scale : 0.0f);
}

const u32 EXPAND_COLUMNS = 64;
const u32 FRAGMENTS = EXPAND_COLUMNS / 8;

// Returns `y` with the sums added; an adapter whose B is 0 changes no bit, not even the sign of a zero.
__device__ inline u32 added(u32 y, float first, float second) {
    const half_element low = {(u16)y}, high = {(u16)(y >> 16)};
    return (u32)(first == 0.0f ? low : narrow(wide(low) + first)).bits |
           (u32)(second == 0.0f ? high : narrow(wide(high) + second)).bits << 16;
}

// Blocks: (tasks, columns of the widest output / 64 · rows / 64). Each of the four warps takes 16 rows of them.
KERNEL(expand_tiles, Lora) {
    const Task& task = arguments.tasks[blockIdx.x];
    const u32 width = arguments.widths[task.output];
    u32 widest = 0;
    for (u32 i = 0; i < OUTPUTS; i++) widest = max(widest, arguments.widths[i]);
    const u32 blocks_of_columns = (widest + EXPAND_COLUMNS - 1) / EXPAND_COLUMNS;
    const u32 first_column = blockIdx.y % blocks_of_columns * EXPAND_COLUMNS;
    const u32 warps = blockDim.x / WARP;
    const u32 first_row = (blockIdx.y / blocks_of_columns * warps + threadIdx.x / WARP) * SIDE;
    if (first_column >= width || first_row >= task.rows) return;
    const u32 group = lane_of_warp() / 4, pair = lane_of_warp() % 4 * 2;
    const element* shrunk = (const element*)arguments.shrunk + ((u64)task.output * arguments.all_rows + task.start) * arguments.most;
    const element* left[2];
    UNROLL for (u32 i = 0; i < 2; i++) left[i] = shrunk + (u64)min(first_row + group + i * 8, task.rows - 1) * arguments.most;
    float sums[FRAGMENTS][4] = {};
    for (u32 k = 0; k < task.rank; k += SIDE) {
        const u32 near = k + pair, far = near + 8;
        const u32 fragment[4] = {*(const u32*)(left[0] + near), *(const u32*)(left[1] + near), *(const u32*)(left[0] + far),
                                 *(const u32*)(left[1] + far)};
        UNROLL for (u32 i = 0; i < FRAGMENTS; i++) {
            const element* b = task.b + (u64)min(first_column + i * 8 + group, width - 1) * task.rank;
            multiply(sums[i], fragment, near < task.rank ? *(const u32*)(b + near) : 0, far < task.rank ? *(const u32*)(b + far) : 0);
        }
    }
    UNROLL for (u32 i = 0; i < FRAGMENTS; i++)
        UNROLL for (u32 second = 0; second < 2; second++) {
            const u32 row = first_row + group + second * 8, column = first_column + i * 8 + pair;
            if (row >= task.rows || column >= width) continue;
            u32* y = (u32*)(arguments.outputs[task.output] + (u64)(task.start + row) * width + column);
            *y = added(*y, sums[i][second * 2], sums[i][second * 2 + 1]);
        }
}
