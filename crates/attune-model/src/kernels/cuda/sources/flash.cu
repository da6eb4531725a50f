// Attention by matrix units, for bf16 and f16 and head sizes of whole 16s up to 128, over a paged cache or packed
// sequences, and its gradient (Dao, "FlashAttention-2", 2023), causal or both ways as in attention.cu. A block has 64
// queries or keys, each of its four warps 16 of them; scores live in registers. dk and dv are one kernel and dq another,
// so that each element is added up by one thread, in one order.

const u32 TILE = 64;
// Rows are a bit longer in shared memory, so that eight of them begin in different banks.
const u32 PITCH = HEAD_DIM + 8;
const u32 STEPS = HEAD_DIM / 16;
const u32 COLUMNS = HEAD_DIM / 8;
const u32 THREADS = 128;
// Keys of a step of dq, and queries of a step of dk and dv: the next ones are copied while these are computed with.
const u32 PART = 32;

struct __align__(16) Row {
    half_element values[PITCH];
};

// Loads the left operand: 16 rows of `rows`, columns from `column` on.
__device__ inline void load_left(u32* to, const Row* rows, u32 column) {
    const u32 lane = lane_of_warp();
    load_matrices(to, &rows[lane % 16].values[column + lane / 16 * 8]);
}

// Loads the right operands of two products, b[column][place] for 16 of the rows of `rows`.
__device__ inline void load_right(u32* to, const Row* rows, u32 column) {
    const u32 lane = lane_of_warp();
    load_matrices(to, &rows[lane / 16 * 8 + lane % 8].values[column + lane / 8 % 2 * 8]);
}

// Loads the right operands of two products, b[row][column], 16 columns of it.
__device__ inline void load_right_rows(u32* to, const Row* rows, u32 column) {
    const u32 lane = lane_of_warp();
    load_transposed(to, &rows[lane / 8 % 2 * 8 + lane % 8].values[column + lane / 16 * 8]);
}

// Copies `count` rows of heads to shared memory asynchronously, and zeros up to `SIZE`; `place` returns the offset of a
// row.
template <u32 SIZE, typename Place>
__device__ inline void copy_tile(Row* to, u32 count, const half_element* from, Place place) {
    UNROLL for (u32 i = threadIdx.x; i < SIZE * COLUMNS; i += THREADS) {
        const u32 row = i / COLUMNS, part = i % COLUMNS * 8;
        copy_ahead((Vector*)&to[row].values[part], (const Vector*)(from + place(min(row, count - 1)) + part), row < count);
    }
}

// Waits until all copies are there, for all threads, and all threads have read the data before them.
__device__ inline void wait_for_tiles() {
    wait_for_groups();
    __syncthreads();
}

// Multiplies the warp's 16 rows with `N` rows: c[i / 8] has columns i to i + 7.
template <u32 N> __device__ inline void scores(float (*c)[4], const u32 (*left)[4], const Row* right) {
    UNROLL for (u32 i = 0; i < N / 8; i++) c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0.0f;
    UNROLL for (u32 step = 0; step < STEPS; step++)
        UNROLL for (u32 i = 0; i < N; i += 16) {
            u32 b[4];
            load_right(b, right + i, step * 16);
            multiply(c[i / 8], left[step], b[0], b[1]);
            multiply(c[i / 8 + 1], left[step], b[2], b[3]);
        }
}

// Adds p · rows, with p `[16, N]` as `scores` leaves it.
template <u32 N> __device__ inline void accumulate(float (*c)[4], const float (*p)[4], const Row* rows) {
    UNROLL for (u32 i = 0; i < N; i += 16) {
        const float *near = p[i / 8], *far = p[i / 8 + 1];
        const u32 a[4] = {pair_of(near[0], near[1]), pair_of(near[2], near[3]), pair_of(far[0], far[1]), pair_of(far[2], far[3])};
        UNROLL for (u32 column = 0; column < HEAD_DIM; column += 16) {
            u32 b[4];
            load_right_rows(b, rows + i, column);
            multiply(c[column / 8], a, b[0], b[1]);
            multiply(c[column / 8 + 1], a, b[2], b[3]);
        }
    }
}

// Exponents are to the base of two, for which the hardware has an instruction.
const float LOG2_OF_E = 1.4426950408889634f;
#ifndef EMULATED
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#else
inline float power_of_two(float x) { return exp2f(x); }
#endif

// Returns the warp's first row of a tile.
__device__ inline u32 first_of_warp() { return threadIdx.x / WARP * 16; }

// Returns true if queries at the positions from `first` to `last` see all keys from `from` up to `to`: most tiles need
// no mask.
__device__ inline bool sees_all(const Rows& rows, u32 length, u32 first, u32 last, u32 from, u32 to) {
    return to < end_seen(rows, length, first) && from >= first_seen(rows, last);
}

// Adds the terms of `head` to the scores `[16, N]` of the warp's queries, the first at `position`, with keys from `from`
// on. They are added before the scale.
template <u32 N>
__device__ inline void add_terms(float (*p)[4], const Distances& distances, u32 head, u32 position, u32 from, float scale) {
    if (!DISTANCES) return;
    const u32 lane = lane_of_warp();
    const float unscaled = 1.0f / scale;
    UNROLL for (u32 j = 0; j < 4; j++) {
        const u32 query = position + lane / 4 + j / 2 * 8;
        UNROLL for (u32 i = 0; i < N / 8; i++)
            p[i][j] += distance_term(distances, head, from + i * 8 + lane % 4 * 2 + j % 2, query) * unscaled;
    }
}

// Masks the scores `[16, N]` of the warp's queries, the first at `position`: keys, from `from` on, that a query does
// not see.
template <u32 N> __device__ inline void mask_keys(float (*p)[4], const Rows& rows, u32 length, u32 position, u32 from) {
    const u32 lane = lane_of_warp();
    UNROLL for (u32 j = 0; j < 4; j++) {
        const u32 query = position + lane / 4 + j / 2 * 8;
        const u32 seen = first_seen(rows, query), end = end_seen(rows, length, query);
        UNROLL for (u32 i = 0; i < N / 8; i++) {
            const u32 key = from + i * 8 + lane % 4 * 2 + j % 2;
            if (key >= end || key < seen) p[i][j] = -INFINITE;
        }
    }
}

// Loads fragments of the warp's rows from shared memory.
__device__ inline void load_lefts(u32 (*to)[4], const Row* rows) {
    UNROLL for (u32 step = 0; step < STEPS; step++) load_left(to[step], rows + first_of_warp(), step * 16);
}

// Writes the lane's first or second row of the warp's 16, each value times `factor`.
__device__ inline void store_row(half_element* to, const float (*c)[4], u32 second, float factor) {
    UNROLL for (u32 i = 0; i < COLUMNS; i++) {
        const u32 column = i * 8 + lane_of_warp() % 4 * 2;
        *(u32*)(to + column) = pair_of(c[i][second * 2] * factor, c[i][second * 2 + 1] * factor);
    }
}

struct Flash {
    const half_element* q;      // [rows, heads, HEAD_DIM]
    const half_element* keys;   // [rows or slots, kv_heads, HEAD_DIM]
    const half_element* values; // [rows or slots, kv_heads, HEAD_DIM]
    half_element* out;          // [rows, heads, HEAD_DIM]
    float* log_sums;            // [rows, heads], or null
    const u32* work;            // [tiles, 2]: up to 64 rows of one sequence, the first and their number
    Rows rows;
    Distances distances;
    u32 heads;
    u32 kv_heads;
    float scale;
};

// Blocks: (tiles, heads). Values come while scores are computed, the next keys while values are added up.
KERNEL(flash, Flash, __launch_bounds__(THREADS)) {
    const Rows& rows = arguments.rows;
    const u32 first = arguments.work[2 * blockIdx.x], count = arguments.work[2 * blockIdx.x + 1];
    const u32 sequence = rows.sequences[first], start = rows.positions[first], last = start + count - 1;
    const u32 head = blockIdx.y, kv_head = head / (arguments.heads / arguments.kv_heads);
    const u32 lane = lane_of_warp(), mine = first_of_warp() + lane / 4;
    const u32 length = length_ahead(rows, sequence), end = end_seen(rows, length, last);
    __shared__ Row keys[TILE], values[TILE];
    const auto place = [&](u32 position) {
        return (slot_of(rows, sequence, position) * arguments.kv_heads + kv_head) * HEAD_DIM;
    };
    const auto copy = [&](Row* to, const half_element* heads, u32 from) {
        copy_tile<TILE>(to, min(TILE, end - from), heads, [&](u32 key) { return place(from + key); });
        end_group();
    };
    copy_tile<TILE>(values, count, arguments.q, [&](u32 row) { return ((u64)(first + row) * arguments.heads + head) * HEAD_DIM; });
    copy(keys, arguments.keys, first_seen(rows, start));
    wait_for_tiles();
    u32 q[STEPS][4];
    load_lefts(q, values);

    const float scale = arguments.scale * LOG2_OF_E;
    float out[COLUMNS][4] = {}, largest[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f};
    for (u32 from = first_seen(rows, start); from < end; from += TILE) {
        wait_for_tiles();
        copy(values, arguments.values, from);
        float p[TILE / 8][4];
        scores<TILE>(p, q, keys);
        const u32 position = start + first_of_warp();
        add_terms<TILE>(p, arguments.distances, head, position, from, arguments.scale);
        if (!sees_all(rows, length, position, position + 15, from, from + TILE - 1))
            mask_keys<TILE>(p, rows, length, position, from);
        wait_for_tiles();
        if (from + TILE < end) copy(keys, arguments.keys, from + TILE);
        UNROLL for (u32 second = 0; second < 2; second++) {
            float larger = largest[second];
            UNROLL for (u32 i = 0; i < TILE / 8; i++) larger = fmaxf(larger, fmaxf(p[i][second * 2], p[i][second * 2 + 1]));
            larger = fmaxf(larger, __shfl_xor_sync(WHOLE_WARP, larger, 1));
            larger = fmaxf(larger, __shfl_xor_sync(WHOLE_WARP, larger, 2));
            // A row may see none of these keys, nor any before.
            const float shift = larger == -INFINITE ? 0.0f : larger * scale, kept = power_of_two(largest[second] * scale - shift);
            largest[second] = larger;
            sum[second] *= kept;
            UNROLL for (u32 i = 0; i < COLUMNS; i++) {
                out[i][second * 2] *= kept;
                out[i][second * 2 + 1] *= kept;
            }
            UNROLL for (u32 i = 0; i < TILE / 8; i++)
                UNROLL for (u32 j = second * 2; j < second * 2 + 2; j++) sum[second] += p[i][j] = power_of_two(p[i][j] * scale - shift);
        }
        accumulate<TILE>(out, p, values);
    }

    UNROLL for (u32 second = 0; second < 2; second++) {
        sum[second] += __shfl_xor_sync(WHOLE_WARP, sum[second], 1);
        sum[second] += __shfl_xor_sync(WHOLE_WARP, sum[second], 2);
        const u32 row = mine + second * 8;
        if (row >= count) continue;
        const u64 at = (u64)(first + row) * arguments.heads + head;
        store_row(arguments.out + at * HEAD_DIM, out, second, 1.0f / sum[second]);
        if (arguments.log_sums != 0 && lane % 4 == 0) arguments.log_sums[at] = logf(sum[second]) + largest[second] * arguments.scale;
    }
}

struct FlashBackward {
    const half_element* q;         // [rows, heads, HEAD_DIM]
    const half_element* k;         // [rows, kv_heads, HEAD_DIM]
    const half_element* v;         // [rows, kv_heads, HEAD_DIM]
    const half_element* out;       // [rows, heads, HEAD_DIM]
    const half_element* dout;      // [rows, heads, HEAD_DIM]
    const float* log_sums; // [rows, heads]
    float* deltas;         // [rows, heads]: dout · out, written with dq and read for dk and dv
    half_element* dq;
    half_element* dk;
    half_element* dv;
    const u32* work; // As in Flash.
    Rows rows;       // Of packed sequences.
    Distances distances;
    u32 heads;
    u32 kv_heads;
    float scale;
};

// Blocks: (tiles, heads). With p = exp(s − log sum) and ds = p (dout · v − delta): dq = scale · Σ ds k.
KERNEL(flash_backward_queries, FlashBackward, __launch_bounds__(THREADS)) {
    const Rows& rows = arguments.rows;
    const u32 first = arguments.work[2 * blockIdx.x], count = arguments.work[2 * blockIdx.x + 1];
    const u32 sequence = rows.sequences[first], start = rows.positions[first], last = start + count - 1;
    const u32 head = blockIdx.y, kv_head = head / (arguments.heads / arguments.kv_heads);
    const u32 lane = lane_of_warp(), mine = first_of_warp() + lane / 4;
    const u32 length = length_ahead(rows, sequence), end = end_seen(rows, length, last);
    __shared__ Row keys[2 * PART], values[2 * PART];
    const auto query = [&](u32 row) { return ((u64)(first + row) * arguments.heads + head) * HEAD_DIM; };
    // Queries and their gradients pass through the memory for keys and values.
    copy_tile<TILE>(keys, count, arguments.q, query);
    copy_tile<TILE>(values, count, arguments.dout, query);
    end_group();
    wait_for_tiles();
    u32 q[STEPS][4], dout[STEPS][4];
    load_lefts(q, keys);
    load_lefts(dout, values);
    __syncthreads();
    const auto copy = [&](u32 half, u32 from) {
        const u32 here = min(PART, end - from);
        const auto place = [&](u32 key) {
            return (slot_of(rows, sequence, from + key) * arguments.kv_heads + kv_head) * HEAD_DIM;
        };
        copy_tile<PART>(keys + half * PART, here, arguments.k, place);
        copy_tile<PART>(values + half * PART, here, arguments.v, place);
        end_group();
    };
    u32 from = first_seen(rows, start);
    copy(0, from);

    float delta[2] = {0.0f, 0.0f}, log_sum[2] = {0.0f, 0.0f};
    UNROLL for (u32 i = 0; i < 16; i++) {
        const u32 row = first_of_warp() + i;
        if (row >= count) break;
        const float product = warp_dot(arguments.out + query(row), arguments.dout + query(row), HEAD_DIM);
        const u64 at = (u64)(first + row) * arguments.heads + head;
        if (lane == 0) arguments.deltas[at] = product;
        if (i % 8 == lane / 4) {
            delta[i / 8] = product;
            log_sum[i / 8] = arguments.log_sums[at] * LOG2_OF_E;
        }
    }

    const float scale = arguments.scale * LOG2_OF_E;
    float dq[COLUMNS][4] = {};
    for (u32 half = 0; from < end; from += PART, half ^= 1) {
        wait_for_tiles();
        if (from + PART < end) copy(half ^ 1, from + PART);
        float p[PART / 8][4], dp[PART / 8][4];
        scores<PART>(p, q, keys + half * PART);
        scores<PART>(dp, dout, values + half * PART);
        const u32 position = start + first_of_warp();
        add_terms<PART>(p, arguments.distances, head, position, from, arguments.scale);
        if (!sees_all(rows, length, position, position + 15, from, from + PART - 1))
            mask_keys<PART>(p, rows, length, position, from);
        UNROLL for (u32 i = 0; i < PART / 8; i++)
            UNROLL for (u32 j = 0; j < 4; j++)
                p[i][j] = power_of_two(p[i][j] * scale - log_sum[j / 2]) * (dp[i][j] - delta[j / 2]);
        accumulate<PART>(dq, p, keys + half * PART);
    }
    UNROLL for (u32 second = 0; second < 2; second++)
        if (mine + second * 8 < count)
            store_row(arguments.dq + query(mine + second * 8), dq, second, arguments.scale);
}

// Blocks: (tiles of keys, key-value heads). Scores are transposed here: rows are keys. Over all query heads of the
// key-value head's group: dk = scale · Σ ds q, dv = Σ p dout.
KERNEL(flash_backward_keys, FlashBackward, __launch_bounds__(THREADS)) {
    const Rows& rows = arguments.rows;
    // The first keys are seen by most queries: their blocks begin first.
    const u32* work = arguments.work + 2 * (gridDim.x - 1 - blockIdx.x);
    const u32 first = work[0], count = work[1];
    const u32 sequence = rows.sequences[first], start = rows.positions[first], last = start + count - 1;
    const u32 before = rows.places[sequence], length = rows.places[sequence + 1] - before;
    const u32 begin = LOOKS_AHEAD ? first_seen(rows, start) : start;
    const u32 end = rows.window != 0 ? min(length, last + rows.window) : length;
    const u32 group = arguments.heads / arguments.kv_heads;
    const u32 lane = lane_of_warp();
    __shared__ Row queries[2 * PART], douts[2 * PART];
    __shared__ float log_sums[2 * PART], deltas[2 * PART];
    const auto key_place = [&](u32 row) { return ((u64)(first + row) * arguments.kv_heads + blockIdx.y) * HEAD_DIM; };
    // Keys and values pass through the memory for queries and gradients.
    copy_tile<TILE>(queries, count, arguments.k, key_place);
    copy_tile<TILE>(douts, count, arguments.v, key_place);
    end_group();
    wait_for_tiles();
    u32 k[STEPS][4], v[STEPS][4];
    load_lefts(k, queries);
    load_lefts(v, douts);
    __syncthreads();
    const auto copy = [&](u32 half, u32 head, u32 from) {
        const u32 here = min(PART, end - from);
        const auto at = [&](u32 row) { return (u64)(before + from + row) * arguments.heads + head; };
        const auto place = [&](u32 row) { return at(row) * HEAD_DIM; };
        copy_tile<PART>(queries + half * PART, here, arguments.q, place);
        copy_tile<PART>(douts + half * PART, here, arguments.dout, place);
        if (threadIdx.x < PART) {
            const u64 row = at(min(threadIdx.x, here - 1));
            copy_ahead(&log_sums[half * PART + threadIdx.x], arguments.log_sums + row, threadIdx.x < here);
            copy_ahead(&deltas[half * PART + threadIdx.x], arguments.deltas + row, threadIdx.x < here);
        }
        end_group();
    };

    const float scale = arguments.scale * LOG2_OF_E, unscaled = 1.0f / arguments.scale;
    float dk[COLUMNS][4] = {}, dv[COLUMNS][4] = {};
    u32 head = blockIdx.y * group, from = begin;
    const u32 last_head = head + group - 1;
    copy(0, head, from);
    for (u32 half = 0; head <= last_head; half ^= 1) {
        wait_for_tiles();
        const u32 now = from, head_now = head;
        from += PART;
        if (from >= end) {
            from = begin;
            head++;
        }
        if (head <= last_head) copy(half ^ 1, head, from);
#pragma unroll 1
        for (u32 part = 0; part < PART; part += 16) {
            const Row *some_queries = queries + half * PART + part, *some_douts = douts + half * PART + part;
            const float *some_sums = log_sums + half * PART + part, *some_deltas = deltas + half * PART + part;
            float p[2][4], ds[2][4];
            scores<16>(p, k, some_queries);
            scores<16>(ds, v, some_douts);
            const u32 key = start + first_of_warp(), query = now + part;
            const bool all = query + 16 <= end && sees_all(rows, length, query, query + 15, key, key + 15);
            UNROLL for (u32 i = 0; i < 2; i++)
                UNROLL for (u32 j = 0; j < 4; j++) {
                    const u32 row = i * 8 + lane % 4 * 2 + j % 2;
                    const u32 mine = key + lane / 4 + j / 2 * 8, other = query + row;
                    if (DISTANCES) p[i][j] += distance_term(arguments.distances, head_now, mine, other) * unscaled;
                    p[i][j] = power_of_two(p[i][j] * scale - some_sums[row] * LOG2_OF_E);
                    if (!all && (other >= end || mine >= end_seen(rows, length, other) || mine < first_seen(rows, other)))
                        p[i][j] = 0.0f;
                    ds[i][j] = p[i][j] * (ds[i][j] - some_deltas[row]);
                }
            accumulate<16>(dv, p, some_douts);
            accumulate<16>(dk, ds, some_queries);
        }
    }
    UNROLL for (u32 second = 0; second < 2; second++) {
        const u32 row = first_of_warp() + lane / 4 + second * 8;
        if (row >= count) continue;
        store_row(arguments.dk + key_place(row), dk, second, arguments.scale);
        store_row(arguments.dv + key_place(row), dv, second, 1.0f);
    }
}
