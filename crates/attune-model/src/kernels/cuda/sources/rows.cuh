// Tables that locate the keys of a row's sequence.

struct Rows {
    const u32* sequences; // [rows], the sequence of each row
    const u32* positions; // [rows], the row's position in its sequence
    // [sequences, blocks], the blocks of the cache that a sequence has; or, if `blocks` is 0, [sequences + 1], the
    // first row of each sequence, whose keys lie one after the other.
    const u32* places;
    u32 blocks;
    // Tokens that a row looks back, the current one included; 0 for all.
    u32 window;
};

__device__ inline u64 slot_of(const Rows& rows, u32 sequence, u32 position) {
    if (rows.blocks == 0) return rows.places[sequence] + position;
    const u32 block = rows.places[(u64)sequence * rows.blocks + position / BLOCK_TOKENS];
    return (u64)block * BLOCK_TOKENS + position % BLOCK_TOKENS;
}

// Returns the first position that the row at `position` sees.
__device__ inline u32 first_seen(const Rows& rows, u32 position) {
    return rows.window != 0 && position + 1 > rows.window ? position + 1 - rows.window : 0;
}
