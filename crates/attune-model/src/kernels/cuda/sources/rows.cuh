// Tables that locate the keys of a row's sequence.

struct Rows {
    const u32* sequences; // [rows], the sequence of each row
    const u32* positions; // [rows], the row's position in its sequence
    // [sequences, blocks], the blocks of the cache that a sequence has; or, if `blocks` is 0, [sequences + 1], the
    // first row of each sequence, whose keys lie one after the other.
    const u32* places;
    u32 blocks;
    // Tokens that a row looks back, the current one included, and as many ahead where LOOKS_AHEAD says so; 0 for all.
    u32 window;
};

__device__ inline u64 slot_of(const Rows& rows, u32 sequence, u32 position) {
    if (rows.blocks == 0) return rows.places[sequence] + position;
    const u32 block = rows.places[(u64)sequence * rows.blocks + position / BLOCK_TOKENS];
    return (u64)block * BLOCK_TOKENS + position % BLOCK_TOKENS;
}

// Terms of attention's scores by the distance of key and query, where DISTANCES says that there are some.
struct Distances {
    const float* terms; // [heads, 2 · most + 1]: those of the distances −most to most, key less query
    u32 most;           // Keys farther away have the terms of the farthest.
};

// Returns the term of `head` for the key at one position and the query at another; 0 if there are none.
__device__ inline float distance_term(const Distances& distances, u32 head, u32 key, u32 query) {
    if (!DISTANCES) return 0.0f;
    const u32 most = distances.most, ahead = key + most;
    const u32 place = ahead > query ? min(ahead - query, 2 * most) : 0;
    return distances.terms[(u64)head * (2 * most + 1) + place];
}

// Returns the length of the row's sequence, of packed ones, where rows look ahead; else it is of no use, and 0.
__device__ inline u32 length_ahead(const Rows& rows, u32 sequence) {
    return LOOKS_AHEAD ? rows.places[sequence + 1] - rows.places[sequence] : 0;
}

// Returns the position behind the last one that the row at `position` sees: its own, or as many ahead as the row looks back.
__device__ inline u32 end_seen(const Rows& rows, u32 length, u32 position) {
    if (!LOOKS_AHEAD) return position + 1;
    return rows.window != 0 ? min(length, position + rows.window) : length;
}

// Returns the first position that the row at `position` sees.
__device__ inline u32 first_seen(const Rows& rows, u32 position) {
    return rows.window != 0 && position + 1 > rows.window ? position + 1 - rows.window : 0;
}
