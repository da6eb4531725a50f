// Gated short convolutions: y = C ⊙ z, where z is the bias plus the sum over the taps of weight ⊙ u of the row so many rows
// before, and u = B ⊙ x. One thread for each row and vector of channels.
//
// u is rounded to an element before it is used, as the cache holds it, and the sum runs from the farthest row to the row's
// own: z has the same bits however a sequence was cut into steps.

struct Filters {
    const float* weight; // [channels, taps]; the last tap is the row's own
    const float* bias;   // [channels]; null if there are none
    u32 taps;
    u32 channels;
};

// A thread's place: its row and its first channel.
struct Place {
    u32 row;
    u32 channel;
};

__device__ inline Place place_of(const Filters& filters) {
    const u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u32 vectors = (filters.channels + VECTOR - 1) / VECTOR;
    return Place{(u32)(thread / vectors), (u32)(thread % vectors) * VECTOR};
}

// Returns B (0), C (1) or x (2) of `row`, from `channel` on.
__device__ inline Vector part_of(const element* projected, u32 channels, u32 row, u32 part, u32 channel) {
    return load_vector(projected + ((u64)row * 3 + part) * channels, channel, channels);
}

// Returns u of `row`, from `channel` on.
__device__ inline Vector input_of(const element* projected, u32 channels, u32 row, u32 channel) {
    const Vector b = part_of(projected, channels, row, 0, channel), x = part_of(projected, channels, row, 2, channel);
    Vector u;
    UNROLL for (u32 i = 0; i < VECTOR; i++) u.values[i] = narrow(wide(b.values[i]) * wide(x.values[i]));
    return u;
}

__device__ inline Floats floats_of(const Vector& vector) {
    Floats floats;
    UNROLL for (u32 i = 0; i < VECTOR; i++) floats.values[i] = wide(vector.values[i]);
    return floats;
}

// Adds to `sum` the product of `values` and the weights of the tap for rows `back` before the current one.
__device__ inline void add_tap(Floats& sum, const Filters& filters, u32 channel, u32 back, const Floats& values) {
    const float* weight = filters.weight + (u64)channel * filters.taps + (filters.taps - 1 - back);
    UNROLL for (u32 i = 0; i < VECTOR; i++) {
        if (channel + i < filters.channels) sum.values[i] += weight[i * filters.taps] * values.values[i];
    }
}

// Returns the slot of the cache that holds u of the row at `position`: one of those of its block, which the last rows of the
// block take in turn.
__device__ inline u64 input_slot(const Rows& rows, u32 sequence, u32 position, u32 taps) {
    const u32 block = rows.places[(u64)sequence * rows.blocks + position / BLOCK_TOKENS];
    return (u64)block * (taps - 1) + position % BLOCK_TOKENS % (taps - 1);
}

// Returns z of a row. The rows before it are in the same call as long as they are of its sequence; those before them are in
// the cache, `inputs`. Packed sequences begin with their first row, and need none.
__device__ inline Floats convolved(
    const element* projected, const element* inputs, const Filters& filters, const Rows& rows, Place place
) {
    const u32 sequence = rows.sequences[place.row], position = rows.positions[place.row];
    Floats z = {};
    if (filters.bias) z = load_floats(filters.bias, place.channel, filters.channels);
    for (u32 back = min(position, filters.taps - 1) + 1; back-- > 0;) {
        Vector u;
        if (back <= place.row && rows.sequences[place.row - back] == sequence) {
            u = input_of(projected, filters.channels, place.row - back, place.channel);
        } else {
            const u64 slot = input_slot(rows, sequence, position - back, filters.taps);
            u = load_vector(inputs + slot * filters.channels, place.channel, filters.channels);
        }
        add_tap(z, filters, place.channel, back, floats_of(u));
    }
    return z;
}

struct Convolution {
    const element* projected; // [rows, 3 · channels]: B, C and x
    element* y;               // [rows, channels]
    element* inputs;          // The cache's u, [blocks · (taps − 1), channels]; null for packed sequences and for one tap.
    Filters filters;
    Rows rows;
    u32 count; // Number of rows.
    u32 keeps; // 1 if `convolution` writes the cache, which it may where each sequence has one row.
};

// Writes u of a row to its slot of the cache.
__device__ inline void keep(const Convolution& arguments, Place place) {
    const u32 channels = arguments.filters.channels, row = place.row;
    const u32 sequence = arguments.rows.sequences[row], position = arguments.rows.positions[row];
    const u64 slot = input_slot(arguments.rows, sequence, position, arguments.filters.taps);
    store_vector(
        arguments.inputs + slot * channels, place.channel, channels,
        input_of(arguments.projected, channels, row, place.channel)
    );
}

KERNEL(convolution, Convolution) {
    const Place place = place_of(arguments.filters);
    if (place.row >= arguments.count) return;
    const u32 channels = arguments.filters.channels;
    const Floats z = convolved(arguments.projected, arguments.inputs, arguments.filters, arguments.rows, place);
    const Vector c = part_of(arguments.projected, channels, place.row, 1, place.channel);
    Vector y;
    UNROLL for (u32 i = 0; i < VECTOR; i++) y.values[i] = narrow(wide(c.values[i]) * z.values[i]);
    store_vector(arguments.y + (u64)place.row * channels, place.channel, channels, y);
    // The thread has read these channels of the slot that it takes, and no other thread reads them.
    if (arguments.keeps) keep(arguments, place);
}

// Writes u of the rows to their slots of the cache: of the rows that take the same slot, the last one alone.
KERNEL(keep_inputs, Convolution) {
    const Place place = place_of(arguments.filters);
    if (place.row >= arguments.count) return;
    const u32 kept = arguments.filters.taps - 1, next = place.row + kept;
    const bool is_in_block = arguments.rows.positions[place.row] % BLOCK_TOKENS + kept < BLOCK_TOKENS;
    const u32* sequences = arguments.rows.sequences;
    if (is_in_block && next < arguments.count && sequences[next] == sequences[place.row]) return;
    keep(arguments, place);
}

struct ConvolutionBackward {
    const element* projected; // [rows, 3 · channels]
    const element* dy;        // [rows, channels]
    element* gradient;        // [rows, 3 · channels]: of B, C and x
    Filters filters;
    Rows rows;
    u32 count;
};

// With dz = dy ⊙ C: dC = dy ⊙ z; du is the sum, over the rows that saw the row, of dz times the weights that they saw it by;
// dB = du ⊙ x, dx = du ⊙ B.
KERNEL(convolution_backward, ConvolutionBackward) {
    const Place place = place_of(arguments.filters);
    if (place.row >= arguments.count) return;
    const Filters& filters = arguments.filters;
    const u32 channels = filters.channels, row = place.row;
    const element* projected = arguments.projected;
    const u32* sequences = arguments.rows.sequences;
    element* gradient = arguments.gradient + (u64)row * 3 * channels;

    const Floats z = convolved(projected, nullptr, filters, arguments.rows, place);
    const Vector dy = load_vector(arguments.dy + (u64)row * channels, place.channel, channels);
    Vector dc;
    UNROLL for (u32 i = 0; i < VECTOR; i++) dc.values[i] = narrow(wide(dy.values[i]) * z.values[i]);
    store_vector(gradient + channels, place.channel, channels, dc);

    Floats du = {};
    for (u32 ahead = 0; ahead < filters.taps; ahead++) {
        const u32 other = row + ahead;
        if (other >= arguments.count || sequences[other] != sequences[row]) break;
        const Vector dy_there = load_vector(arguments.dy + (u64)other * channels, place.channel, channels);
        const Vector c = part_of(projected, channels, other, 1, place.channel);
        Floats dz;
        UNROLL for (u32 i = 0; i < VECTOR; i++) dz.values[i] = wide(dy_there.values[i]) * wide(c.values[i]);
        add_tap(du, filters, place.channel, ahead, dz);
    }
    const Vector b = part_of(projected, channels, row, 0, place.channel), x = part_of(projected, channels, row, 2, place.channel);
    Vector db, dx;
    UNROLL for (u32 i = 0; i < VECTOR; i++) {
        db.values[i] = narrow(du.values[i] * wide(x.values[i]));
        dx.values[i] = narrow(du.values[i] * wide(b.values[i]));
    }
    store_vector(gradient, place.channel, channels, db);
    store_vector(gradient + 2 * channels, place.channel, channels, dx);
}
