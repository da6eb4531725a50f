// Attention for any precision and head size, over a paged cache or over packed sequences, and its gradient (Dao et al.,
// "FlashAttention", 2022): no matrix of scores is ever in memory. It is causal, unless LOOKS_AHEAD says that rows of
// packed sequences look both ways. Each lane of a warp takes one key, 32 keys at a time.

const u32 WARPS = 8;
const u32 PER_LANE = (HEAD_DIM + WARP - 1) / WARP;

// Returns the block's row.
template <typename Arguments> __device__ inline u32 row_of_block(const Arguments& arguments) {
    return arguments.work != 0 ? arguments.work[blockIdx.x] : blockIdx.x;
}

// Returns a · b of a head; `a` is in shared memory.
__device__ inline float head_dot(const float* a, const element* b) {
    float sum = 0.0f;
    if (HEAD_DIM % VECTOR == 0) {
        const Vector* vectors = (const Vector*)b;
        for (u32 i = 0; i < HEAD_DIM / VECTOR; i++) {
            const Vector vector = vectors[i];
            for (u32 j = 0; j < VECTOR; j++) sum += a[i * VECTOR + j] * wide(vector.values[j]);
        }
    } else {
        for (u32 i = 0; i < HEAD_DIM; i++) sum += a[i] * wide(b[i]);
    }
    return sum;
}

// Adds `factor` · `x`, a head, to the lanes' shares.
__device__ inline void add_head(float* shares, float factor, const element* x) {
    UNROLL for (u32 i = 0; i < PER_LANE; i++) {
        const u32 place = i * WARP + lane_of_warp();
        if (place < HEAD_DIM) shares[i] += factor * wide(x[place]);
    }
}

__device__ inline void load_head(float* to, const element* from) {
    for (u32 i = threadIdx.x; i < HEAD_DIM; i += blockDim.x) to[i] = wide(from[i]);
}

// Returns the sum of all warps' shares at `place`, each times its factor; all threads take part.
__device__ inline float gather(float (*of_warps)[HEAD_DIM], const float* factors, u32 place) {
    float sum = 0.0f;
    for (u32 warp = 0; warp < blockDim.x / WARP; warp++) sum += factors[warp] * of_warps[warp][place];
    return sum;
}

__device__ inline void put_shares(float (*of_warps)[HEAD_DIM], const float* shares) {
    UNROLL for (u32 i = 0; i < PER_LANE; i++) {
        const u32 place = i * WARP + lane_of_warp();
        if (place < HEAD_DIM) of_warps[threadIdx.x / WARP][place] = shares[i];
    }
}

struct Attention {
    const element* q;      // [rows, heads, HEAD_DIM]
    const element* keys;   // [slots, kv_heads, HEAD_DIM]
    const element* values; // [slots, kv_heads, HEAD_DIM]
    element* out;          // [rows, heads, HEAD_DIM]
    float* log_sums;       // [rows, heads]: the logarithm of each softmax's sum; or null
    const u32* work;       // The rows to compute; null for all
    Rows rows;
    Distances distances;
    u32 heads;
    u32 kv_heads;
    float scale;
    float cap; // Of the scores; 0 for none.
};

// Blocks: (rows, heads). The warps of a block take turns with the keys.
KERNEL(attention, Attention) {
    const Rows& rows = arguments.rows;
    const u32 row = row_of_block(arguments);
    const u32 warp = threadIdx.x / WARP, lane = lane_of_warp(), warps = blockDim.x / WARP;
    const u32 sequence = rows.sequences[row], position = rows.positions[row];
    const u32 kv_head = blockIdx.y / (arguments.heads / arguments.kv_heads);
    const u64 head = (u64)row * arguments.heads + blockIdx.y;
    const u32 end = end_seen(rows, length_ahead(rows, sequence), position);
    __shared__ float q[HEAD_DIM], outs[WARPS][HEAD_DIM], factors[WARPS], largests[WARPS], sums[WARPS];
    load_head(q, arguments.q + head * HEAD_DIM);
    __syncthreads();

    float largest = -INFINITE, sum = 0.0f, out[PER_LANE] = {0.0f};
    for (u32 first = first_seen(rows, position) + warp * WARP; first < end; first += warps * WARP) {
        const u32 key = first + lane;
        u64 place = 0;
        float score = -INFINITE;
        if (key < end) {
            place = (slot_of(rows, sequence, key) * arguments.kv_heads + kv_head) * HEAD_DIM;
            score = capped(head_dot(q, arguments.keys + place) * arguments.scale, arguments.cap);
            score += distance_term(arguments.distances, blockIdx.y, key, position);
        }
        const float larger = fmaxf(largest, warp_max(score)), kept = expf(largest - larger);
        const float probability = expf(score - larger);
        sum = sum * kept + warp_sum(probability);
        largest = larger;
        UNROLL for (u32 i = 0; i < PER_LANE; i++) out[i] *= kept;
        const u32 keys = min(WARP, end - first);
        for (u32 other = 0; other < keys; other++) {
            const u64 value = __shfl_sync(WHOLE_WARP, place, other);
            add_head(out, __shfl_sync(WHOLE_WARP, probability, other), arguments.values + value);
        }
    }

    put_shares(outs, out);
    if (lane == 0) {
        largests[warp] = largest;
        sums[warp] = sum;
    }
    __syncthreads();
    float all = -INFINITE, total = 0.0f;
    for (u32 other = 0; other < warps; other++) all = fmaxf(all, largests[other]);
    for (u32 other = 0; other < warps; other++) total += sums[other] * expf(largests[other] - all);
    if (threadIdx.x < warps) factors[threadIdx.x] = expf(largests[threadIdx.x] - all) / total;
    __syncthreads();
    for (u32 place = threadIdx.x; place < HEAD_DIM; place += blockDim.x)
        arguments.out[head * HEAD_DIM + place] = narrow(gather(outs, factors, place));
    if (arguments.log_sums != 0 && threadIdx.x == 0) arguments.log_sums[head] = logf(total) + all;
}

struct AttentionBackward {
    const element* q;      // [rows, heads, HEAD_DIM]
    const element* k;      // [rows, kv_heads, HEAD_DIM]
    const element* v;      // [rows, kv_heads, HEAD_DIM]
    const element* out;    // [rows, heads, HEAD_DIM]
    const element* dout;   // [rows, heads, HEAD_DIM]
    const float* log_sums; // [rows, heads]
    float* deltas;         // [rows, heads]: dout · out, written with dq and read for dk and dv
    element* dq;
    element* dk;
    element* dv;
    const u32* work; // As in Attention.
    Rows rows;       // Of packed sequences.
    Distances distances;
    u32 heads;
    u32 kv_heads;
    float scale;
    float cap; // Of the scores; 0 for none.
};

// Blocks: (rows, heads). With p = exp(s − log sum) and ds = p (dout · v − delta): dq = scale · Σ ds k.
KERNEL(attention_backward_queries, AttentionBackward) {
    const Rows& rows = arguments.rows;
    const u32 row = row_of_block(arguments);
    const u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const u32 sequence = rows.sequences[row], position = rows.positions[row];
    const u32 kv_head = blockIdx.y / (arguments.heads / arguments.kv_heads);
    const u64 head = (u64)row * arguments.heads + blockIdx.y;
    const u32 end = end_seen(rows, length_ahead(rows, sequence), position);
    __shared__ float q[HEAD_DIM], dout[HEAD_DIM], shares[WARPS][HEAD_DIM], factors[WARPS];
    load_head(q, arguments.q + head * HEAD_DIM);
    load_head(dout, arguments.dout + head * HEAD_DIM);
    if (threadIdx.x < warps) factors[threadIdx.x] = arguments.scale;
    const float delta = warp_dot(arguments.out + head * HEAD_DIM, arguments.dout + head * HEAD_DIM, HEAD_DIM);
    if (threadIdx.x == 0) arguments.deltas[head] = delta;
    const float log_sum = arguments.log_sums[head];
    __syncthreads();

    float dq[PER_LANE] = {0.0f};
    for (u32 first = first_seen(rows, position) + warp * WARP; first < end; first += warps * WARP) {
        const u32 key = first + lane_of_warp();
        u64 place = 0;
        float dscore = 0.0f;
        if (key < end) {
            place = (slot_of(rows, sequence, key) * arguments.kv_heads + kv_head) * HEAD_DIM;
            const float score = capped(head_dot(q, arguments.k + place) * arguments.scale, arguments.cap);
            const float term = distance_term(arguments.distances, blockIdx.y, key, position);
            const float probability = expf(score + term - log_sum);
            dscore = probability * (head_dot(dout, arguments.v + place) - delta) * cap_slope(score, arguments.cap);
        }
        const u32 keys = min(WARP, end - first);
        for (u32 other = 0; other < keys; other++) {
            const u64 from = __shfl_sync(WHOLE_WARP, place, other);
            add_head(dq, __shfl_sync(WHOLE_WARP, dscore, other), arguments.k + from);
        }
    }
    put_shares(shares, dq);
    __syncthreads();
    for (u32 place = threadIdx.x; place < HEAD_DIM; place += blockDim.x)
        arguments.dq[head * HEAD_DIM + place] = narrow(gather(shares, factors, place));
}

// Blocks: (rows, key-value heads). Each lane takes one query that sees the row's key. Over all query heads of the
// key-value head's group: dk = scale · Σ ds q, dv = Σ p dout.
KERNEL(attention_backward_keys, AttentionBackward) {
    const Rows& rows = arguments.rows;
    const u32 row = row_of_block(arguments);
    const u32 warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const u32 sequence = rows.sequences[row], position = rows.positions[row];
    const u32 start = rows.places[sequence], length = rows.places[sequence + 1] - start;
    const u32 begin = LOOKS_AHEAD ? first_seen(rows, position) : position;
    const u32 end = rows.window != 0 ? min(length, position + rows.window) : length;
    const u32 group = arguments.heads / arguments.kv_heads;
    const u64 key = ((u64)row * arguments.kv_heads + blockIdx.y) * HEAD_DIM;
    __shared__ float k[HEAD_DIM], v[HEAD_DIM], dks[WARPS][HEAD_DIM], dvs[WARPS][HEAD_DIM];
    __shared__ float scales[WARPS], ones[WARPS];
    load_head(k, arguments.k + key);
    load_head(v, arguments.v + key);
    if (threadIdx.x < warps) {
        scales[threadIdx.x] = arguments.scale;
        ones[threadIdx.x] = 1.0f;
    }
    __syncthreads();

    float dk[PER_LANE] = {0.0f}, dv[PER_LANE] = {0.0f};
    for (u32 head = blockIdx.y * group; head < (blockIdx.y + 1) * group; head++) {
        for (u32 first = begin + warp * WARP; first < end; first += warps * WARP) {
            const u32 query = first + lane_of_warp();
            const u64 at = (u64)(start + query) * arguments.heads + head;
            float probability = 0.0f, dscore = 0.0f;
            if (query < end) {
                const float score = capped(head_dot(k, arguments.q + at * HEAD_DIM) * arguments.scale, arguments.cap);
                const float term = distance_term(arguments.distances, head, position, query);
                probability = expf(score + term - arguments.log_sums[at]);
                dscore = probability * (head_dot(v, arguments.dout + at * HEAD_DIM) - arguments.deltas[at]);
                dscore *= cap_slope(score, arguments.cap);
            }
            const u32 queries = min(WARP, end - first);
            for (u32 other = 0; other < queries; other++) {
                const u64 from = __shfl_sync(WHOLE_WARP, at, other) * HEAD_DIM;
                add_head(dk, __shfl_sync(WHOLE_WARP, dscore, other), arguments.q + from);
                add_head(dv, __shfl_sync(WHOLE_WARP, probability, other), arguments.dout + from);
            }
        }
    }
    put_shares(dks, dk);
    put_shares(dvs, dv);
    __syncthreads();
    for (u32 place = threadIdx.x; place < HEAD_DIM; place += blockDim.x) {
        arguments.dk[key + place] = narrow(gather(dks, scales, place));
        arguments.dv[key + place] = narrow(gather(dvs, ones, place));
    }
}
