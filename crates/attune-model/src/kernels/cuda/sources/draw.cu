// Draws a token for each row of logits: the most probable one, or one by its probability, from all tokens or from the
// most probable ones. One block for each row.

// Settings of a draw; see `Draw` in `kernels/mod.rs`.
struct Request {
    double temperature; // 0 takes the most probable token, the first among equals.
    double point;       // 0 to 1: the point at which the weights laid end to end are cut.
    double top_k;       // 0 for all
    double top_p;       // 1 for all
    double min_p;       // 0 for all
};

struct Draw {
    const element* logits;   // [rows, classes]
    const Request* requests; // [rows]
    u32* tokens;             // [rows]; NONE if a logit is not finite
    u32 classes;
};

const u32 NONE = 0xffffffffu;
const u32 MOST_THREADS = 512;

__device__ inline bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

struct Cut {
    const element* logits;
    float largest;
    float temperature;
    float floor; // Smaller weights count as 0.
};

__device__ inline double weight_at(const Cut& cut, float logit) {
    const float weight = expf((logit - cut.largest) / cut.temperature);
    return weight < cut.floor ? 0.0f : weight;
}

__device__ inline double weight_of(const Cut& cut, u32 token) { return weight_at(cut, wide(cut.logits[token])); }

__device__ inline double weights_of(const Cut& cut, u32 first, u32 end) {
    double sum = 0.0;
    for (u32 token = first; token < end; token++) sum += weight_of(cut, token);
    return sum;
}

// Returns the first of `count` pieces that reaches beyond `rest`, or the last with any weight if there is no such
// piece; `rest` is then within it.
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

// Tokens in the order of their logits, without sorting them. Each logit has a key, a whole number, larger for a larger
// logit; a search over keys asks for the weight of all tokens with a given key or a larger one. Digits that elements do
// not have are left out.
template <typename T> struct Missing {
    static const u32 DIGITS = 0;
};
template <> struct Missing<bf16> {
    static const u32 DIGITS = 16;
};
template <> struct Missing<f16> {
    static const u32 DIGITS = 13;
};
const u32 MISSING = Missing<element>::DIGITS;

__device__ inline u32 key_of(float logit) {
    const u32 bits = __float_as_uint(logit + 0.0f); // Both zeros have one key.
    return (bits >> 31 != 0 ? ~bits : bits | 0x80000000u) >> MISSING;
}

__device__ inline float logit_of(u32 key) {
    const u32 bits = key << MISSING;
    return __uint_as_float(bits >> 31 != 0 ? bits & 0x7fffffffu : ~(bits | ((1u << MISSING) - 1)));
}

// A set of the most probable tokens: all with a key above `least`, and the first `equals` of those with the key
// `least`.
struct Kept {
    u32 least;
    u32 equals;
};

// Returns the sum over a block to all its threads.
__device__ inline double block_total(double x) {
    __shared__ double of_warps[WARP];
    for (u32 other = WARP / 2; other > 0; other /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, other);
    __syncthreads(); // A sum before this one may still be read.
    if (lane_of_warp() == 0) of_warps[threadIdx.x / WARP] = x;
    __syncthreads();
    double sum = 0.0;
    for (u32 i = 0; i < blockDim.x / WARP; i++) sum += of_warps[i];
    return sum;
}

// Returns the weight of the kept tokens with `key` or a larger one, or their number if `counts`.
__device__ inline double reach(const Cut& cut, u32 classes, const Kept& kept, u32 key, bool counts) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < classes; i += blockDim.x) {
        const float logit = wide(cut.logits[i]);
        const u32 own = key_of(logit);
        if (own >= key && own > kept.least) sum += counts ? 1.0 : weight_at(cut, logit);
    }
    sum = block_total(sum);
    if (key <= kept.least && kept.equals > 0) sum += kept.equals * (counts ? 1.0 : weight_at(cut, logit_of(kept.least)));
    return sum;
}

// Returns the largest key that reaches `wanted`, or goes beyond it if `beyond`; the least key always does.
__device__ inline u32 search(const Cut& cut, u32 classes, const Kept& kept, double wanted, bool counts, bool beyond) {
    u32 low = kept.least, high = key_of(cut.largest);
    while (low < high) {
        const u32 middle = low + (high - low + 1) / 2;
        const double reached = reach(cut, classes, kept, middle, counts);
        if (beyond ? reached > wanted : reached >= wanted) low = middle;
        else high = middle - 1;
    }
    return low;
}

// Returns the number of kept tokens with `key`.
__device__ inline u32 equals_at(const Cut& cut, u32 classes, const Kept& kept, u32 key) {
    if (key == kept.least) return kept.equals;
    double count = 0.0;
    for (u32 i = threadIdx.x; i < classes; i += blockDim.x) count += key_of(wide(cut.logits[i])) == key ? 1.0 : 0.0;
    return (u32)block_total(count);
}

// Returns token number `index` of those with `key`, to the first thread. Each thread counts those in one piece of all
// tokens.
__device__ inline u32 token_at(const Cut& cut, u32 classes, u32 key, u32 index) {
    __shared__ u32 counts[MOST_THREADS];
    const u32 piece = (classes + blockDim.x - 1) / blockDim.x;
    const u32 first = min(classes, threadIdx.x * piece);
    u32 count = 0;
    for (u32 i = first; i < min(classes, first + piece); i++) count += key_of(wide(cut.logits[i])) == key;
    counts[threadIdx.x] = count;
    __syncthreads();
    if (threadIdx.x != 0) return NONE;
    u32 chosen = 0;
    while (chosen + 1 < blockDim.x && counts[chosen] <= index) index -= counts[chosen++];
    for (u32 i = min(classes, chosen * piece); i < classes; i++)
        if (key_of(wide(cut.logits[i])) == key && index-- == 0) return i;
    return NONE;
}

// Draws from the most probable tokens, in the order of transformers: `top_k` of them; of these the fewest with a share
// of `top_p`; of these, those that weigh `min_p` of the first. They lie end to end from the most probable one on, the
// lowest first among equals.
__device__ inline u32 draw_from_most_probable(Cut cut, u32 classes, const Request& request) {
    Kept kept = {0, 0}; // No finite logit has the key 0: all are kept.
    if (request.top_k > 0.0 && request.top_k < classes) {
        kept.least = search(cut, classes, kept, request.top_k, true, false);
        kept.equals = (u32)(request.top_k - reach(cut, classes, {0, 0}, kept.least + 1, true));
    }
    if (request.top_p < 1.0) {
        const double wanted = request.top_p * reach(cut, classes, kept, kept.least, false);
        const u32 key = search(cut, classes, kept, wanted, false, false);
        const double missing = wanted - reach(cut, classes, kept, key + 1, false);
        const double needed = fmax(1.0, ceil(missing / weight_at(cut, logit_of(key))));
        kept = {key, (u32)fmin(needed, (double)equals_at(cut, classes, kept, key))};
    }
    cut.floor = request.min_p;
    const double target = request.point * reach(cut, classes, kept, kept.least, false);
    const u32 key = search(cut, classes, kept, target, false, true);
    const double within = target - reach(cut, classes, kept, key + 1, false);
    const double last = (double)equals_at(cut, classes, kept, key) - 1.0;
    const double index = fmax(0.0, fmin(last, floor(within / weight_at(cut, logit_of(key)))));
    return token_at(cut, classes, key, (u32)index);
}

KERNEL(draw, Draw) {
    const u32 row = blockIdx.x, classes = arguments.classes;
    const Request& request = arguments.requests[row];
    Cut cut = {arguments.logits + (u64)row * classes, -INFINITE, (float)request.temperature, 0.0f};
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
    broken = block_sum(broken); // This waits for all threads.
    for (u32 warp = 0; warp < blockDim.x / WARP; warp++)
        if (largests[warp] > cut.largest || (largests[warp] == cut.largest && positions[warp] < position)) {
            cut.largest = largests[warp];
            position = positions[warp];
        }
    if (broken != 0.0f || cut.temperature <= 0.0f) {
        if (threadIdx.x == 0) arguments.tokens[row] = broken != 0.0f ? NONE : position;
        return;
    }

    if (request.top_k > 0.0 || request.top_p < 1.0) {
        const u32 token = draw_from_most_probable(cut, classes, request);
        if (threadIdx.x == 0) arguments.tokens[row] = token;
        return;
    }
    cut.floor = request.min_p;

    // Narrowed down in three steps: a piece of all tokens for each thread, a part of the chosen piece for each lane,
    // its tokens.
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
        double within = request.point * total;
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
