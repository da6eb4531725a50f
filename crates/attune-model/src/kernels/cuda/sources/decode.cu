// Attention of steps in which each sequence has one new row, over the paged cache, for any precision and head size:
// norms query and key, rotates them, writes key and value to the cache and attends, in one launch. A block has the
// GROUP query heads of one key-value head, so that keys and values are read once. If sequences are long and few,
// several blocks share the keys of each, and `join` adds up their results (Dao et al., "Flash-Decoding", 2023).

// With half as many threads, each has twice the registers.
const u32 WARPS = GROUP > 4 ? 8 : 16;
const u32 HALF_HEAD = HEAD_DIM / 2;
// Lanes that read a value together, VECTOR elements each, if this divides evenly; else each lane reads every 32nd
// element.
const u32 LANES_OF_HEAD = HEAD_DIM / VECTOR;
#define IN_VECTORS (HEAD_DIM % VECTOR == 0 && LANES_OF_HEAD <= WARP && WARP % LANES_OF_HEAD == 0)
const u32 AT_ONCE = IN_VECTORS ? WARP / LANES_OF_HEAD : 1;
const u32 PER_LANE = IN_VECTORS ? VECTOR : (HEAD_DIM + WARP - 1) / WARP;

struct Decode {
    const element* q;      // [rows, heads, HEAD_DIM]
    const element* k;      // [rows, kv_heads, HEAD_DIM]
    const element* v;      // [rows, kv_heads, HEAD_DIM]
    const float* q_norm;   // [HEAD_DIM], the weight of an RMS norm of each query; or null
    const float* k_norm;   // [HEAD_DIM], of each key; or null
    const float* cos;      // [rows, half]
    const float* sin;
    element* keys;         // [slots, kv_heads, HEAD_DIM]
    element* values;       // [slots, kv_heads, HEAD_DIM]
    const u32* slots;      // [rows], slots of the rows' own keys and values
    element* out;          // [rows, heads, HEAD_DIM]
    float* parts;          // [rows, heads, splits, HEAD_DIM + 2], if there are splits
    Rows rows;
    u32 kv_heads;
    u32 splits;            // Blocks that share the keys of a row.
    float scale;
    float eps;             // Of the norms.
    float cap;             // Of the scores; 0 for none.
    u32 half;              // Half of the elements of a head that are rotated, its first ones; 0 if none are.
};

// Returns the place in a head of element `i` of the lane's share; HEAD_DIM or more if there is none.
__device__ inline u32 place_of(u32 i) {
    return IN_VECTORS ? lane_of_warp() % LANES_OF_HEAD * VECTOR + i : i * WARP + lane_of_warp();
}

__device__ inline void load_share(float* to, const element* head) {
    if (IN_VECTORS) {
        const Vector vector = *(const Vector*)(head + place_of(0));
        UNROLL for (u32 i = 0; i < PER_LANE; i++) to[i] = wide(vector.values[i]);
    } else {
        UNROLL for (u32 i = 0; i < PER_LANE; i++) to[i] = place_of(i) < HEAD_DIM ? wide(head[place_of(i)]) : 0.0f;
    }
}

// Norms and rotates a head, by one warp.
__device__ inline void prepare(float* to, const element* from, const float* norm, const Decode& arguments) {
    const u32 lane = lane_of_warp();
    float inverse = 1.0f;
    if (norm != 0) {
        float squares = 0.0f;
        for (u32 i = lane; i < HEAD_DIM; i += WARP) squares += wide(from[i]) * wide(from[i]);
        inverse = 1.0f / sqrtf(warp_sum(squares) / HEAD_DIM + arguments.eps);
    }
    for (u32 i = lane; i < HALF_HEAD; i += WARP) {
        const bool is_rotated = i < arguments.half;
        const u32 first = is_rotated ? i : 2 * i, second = is_rotated ? i + arguments.half : 2 * i + 1;
        float a = wide(from[first]), b = wide(from[second]);
        if (norm != 0) {
            a *= inverse * norm[first];
            b *= inverse * norm[second];
        }
        float cos = 1.0f, sin = 0.0f;
        if (is_rotated) {
            cos = arguments.cos[(u64)blockIdx.x * arguments.half + i];
            sin = arguments.sin[(u64)blockIdx.x * arguments.half + i];
        }
        to[first] = a * cos - b * sin;
        to[second] = b * cos + a * sin;
    }
}

// Computes the products of each query with `key`.
__device__ inline void scores(float* to, const float (*q)[HEAD_DIM], const element* key) {
    UNROLL for (u32 g = 0; g < GROUP; g++) to[g] = 0.0f;
    if (HEAD_DIM % VECTOR == 0) {
        const Vector* vectors = (const Vector*)key;
#pragma unroll 4
        for (u32 i = 0; i < HEAD_DIM / VECTOR; i++) {
            const Vector vector = vectors[i];
            UNROLL for (u32 j = 0; j < VECTOR; j++)
                UNROLL for (u32 g = 0; g < GROUP; g++) to[g] += q[g][i * VECTOR + j] * wide(vector.values[j]);
        }
    } else {
        for (u32 i = 0; i < HEAD_DIM; i++)
            UNROLL for (u32 g = 0; g < GROUP; g++) to[g] += q[g][i] * wide(key[i]);
    }
}

// Blocks: (rows, kv_heads · splits). The warps of a block take turns with the keys; each lane of a warp has one of 32.
KERNEL(decode, Decode, __launch_bounds__(WARPS * WARP, 1)) {
    const Rows& rows = arguments.rows;
    const u32 row = blockIdx.x, kv_head = blockIdx.y / arguments.splits, split = blockIdx.y % arguments.splits;
    const u32 warp = threadIdx.x / WARP, lane = lane_of_warp(), warps = blockDim.x / WARP;
    const u32 sequence = rows.sequences[row], position = rows.positions[row];
    const u32 seen = first_seen(rows, position), share = (position - seen) / arguments.splits + 1;
    const u32 begin = seen + split * share, end = min(position + 1, begin + share);
    const u64 first_head = ((u64)row * arguments.kv_heads + kv_head) * GROUP;
    __shared__ float q[GROUP][HEAD_DIM], outs[WARPS][HEAD_DIM], largests[WARPS][GROUP], sums[WARPS][GROUP], factors[WARPS][GROUP];

    // Of the blocks that share the keys of a row, only the one whose share includes the row's own key writes it, and
    // only that block reads it.
    for (u32 head = warp; head <= GROUP; head += warps) {
        if (head < GROUP) {
            prepare(q[head], arguments.q + (first_head + head) * HEAD_DIM, arguments.q_norm, arguments);
        } else if (begin <= position && end == position + 1) {
            const u64 from = ((u64)row * arguments.kv_heads + kv_head) * HEAD_DIM;
            const u64 to = ((u64)arguments.slots[row] * arguments.kv_heads + kv_head) * HEAD_DIM;
            prepare(outs[0], arguments.k + from, arguments.k_norm, arguments);
            __syncwarp();
            for (u32 i = lane; i < HEAD_DIM; i += WARP) {
                arguments.keys[to + i] = narrow(outs[0][i]);
                arguments.values[to + i] = arguments.v[from + i];
            }
        }
    }
    __syncthreads();

    float largest[GROUP], sum[GROUP], out[GROUP][PER_LANE];
    UNROLL for (u32 g = 0; g < GROUP; g++) {
        largest[g] = -INFINITE;
        sum[g] = 0.0f;
        UNROLL for (u32 i = 0; i < PER_LANE; i++) out[g][i] = 0.0f;
    }
    for (u32 first = begin + warp * WARP; first < end; first += warps * WARP) {
        const u32 key = first + lane;
        u64 place = 0;
        float probability[GROUP];
        UNROLL for (u32 g = 0; g < GROUP; g++) probability[g] = -INFINITE;
        if (key < end) {
            place = (slot_of(rows, sequence, key) * arguments.kv_heads + kv_head) * HEAD_DIM;
            scores(probability, q, arguments.keys + place);
        }
        UNROLL for (u32 g = 0; g < GROUP; g++) {
            const float score = key < end ? capped(probability[g] * arguments.scale, arguments.cap) : -INFINITE;
            const float larger = fmaxf(largest[g], warp_max(score)), kept = expf(largest[g] - larger);
            probability[g] = expf(score - larger);
            sum[g] = sum[g] * kept + warp_sum(probability[g]);
            largest[g] = larger;
            UNROLL for (u32 i = 0; i < PER_LANE; i++) out[g][i] *= kept;
        }
        // Keys beyond the end have probability 0.
        const u32 mine = lane / (WARP / AT_ONCE), here = min(WARP, end - first);
#pragma unroll 4
        for (u32 other = 0; other < here; other += AT_ONCE) {
            const u64 from = __shfl_sync(WHOLE_WARP, place, other + mine);
            float value[PER_LANE] = {};
            if (other + mine < here) load_share(value, arguments.values + from);
            UNROLL for (u32 g = 0; g < GROUP; g++) {
                const float factor = __shfl_sync(WHOLE_WARP, probability[g], other + mine);
                UNROLL for (u32 i = 0; i < PER_LANE; i++) out[g][i] += factor * value[i];
            }
        }
    }

    if (lane == 0)
        UNROLL for (u32 g = 0; g < GROUP; g++) {
            largests[warp][g] = largest[g];
            sums[warp][g] = sum[g];
        }
    __syncthreads();
    if (threadIdx.x < warps * GROUP) {
        const u32 of = threadIdx.x / GROUP, g = threadIdx.x % GROUP;
        float all = -INFINITE;
        for (u32 other = 0; other < warps; other++) all = fmaxf(all, largests[other][g]);
        // A warp, or even a block, may have no key.
        factors[of][g] = all == -INFINITE ? 0.0f : expf(largests[of][g] - all);
    }
    UNROLL for (u32 g = 0; g < GROUP; g++) {
        // Adds up the values that lanes of different keys have at the same place.
        UNROLL for (u32 i = 0; i < PER_LANE; i++)
            for (u32 other = WARP / AT_ONCE; other < WARP; other *= 2) out[g][i] += __shfl_xor_sync(WHOLE_WARP, out[g][i], other);
        __syncthreads(); // All threads have read the old values of outs, and the factors are there.
        if (lane < WARP / AT_ONCE)
            UNROLL for (u32 i = 0; i < PER_LANE; i++)
                if (place_of(i) < HEAD_DIM) outs[warp][place_of(i)] = out[g][i];
        __syncthreads();
        float total = 0.0f;
        for (u32 other = 0; other < warps; other++) total += sums[other][g] * factors[other][g];
        const u64 head = first_head + g;
        float* part = arguments.parts + (head * arguments.splits + split) * (HEAD_DIM + 2);
        for (u32 place = threadIdx.x; place < HEAD_DIM; place += blockDim.x) {
            float value = 0.0f;
            for (u32 other = 0; other < warps; other++) value += outs[other][place] * factors[other][g];
            if (arguments.splits == 1)
                arguments.out[head * HEAD_DIM + place] = narrow(value / total);
            else
                part[place] = value;
        }
        if (arguments.splits > 1 && threadIdx.x == 0) {
            float all = -INFINITE;
            for (u32 other = 0; other < warps; other++) all = fmaxf(all, largests[other][g]);
            part[HEAD_DIM] = all;
            part[HEAD_DIM + 1] = total;
        }
    }
}

struct Join {
    const float* parts; // [rows · heads, splits, HEAD_DIM + 2]: sums of values, largest score, sum of probabilities
    element* out;       // [rows · heads, HEAD_DIM]
    u32 splits;
    u32 padding;
};

// Blocks: rows · heads.
KERNEL(join, Join) {
    const float* parts = arguments.parts + (u64)blockIdx.x * arguments.splits * (HEAD_DIM + 2);
    float all = -INFINITE, total = 0.0f;
    for (u32 split = 0; split < arguments.splits; split++) all = fmaxf(all, parts[split * (HEAD_DIM + 2) + HEAD_DIM]);
    for (u32 split = 0; split < arguments.splits; split++) {
        const float* part = parts + split * (HEAD_DIM + 2);
        total += part[HEAD_DIM + 1] * expf(part[HEAD_DIM] - all);
    }
    for (u32 place = threadIdx.x; place < HEAD_DIM; place += blockDim.x) {
        float value = 0.0f;
        for (u32 split = 0; split < arguments.splits; split++) {
            const float* part = parts + split * (HEAD_DIM + 2);
            value += part[place] * expf(part[HEAD_DIM] - all);
        }
        arguments.out[(u64)blockIdx.x * HEAD_DIM + place] = narrow(value / total);
    }
}
