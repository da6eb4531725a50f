// Writes the keys and values of new rows to their slots of the cache: one block for each row.

struct WriteCache {
    const element* k; // [rows, width]
    const element* v;
    element* keys; // [slots, width]
    element* values;
    const u32* slots; // [rows]
    u32 width;
};

KERNEL(write_cache, WriteCache) {
    const u64 from = (u64)blockIdx.x * arguments.width;
    const u64 to = (u64)arguments.slots[blockIdx.x] * arguments.width;
    for (u32 i = threadIdx.x; i < arguments.width; i += blockDim.x) {
        arguments.keys[to + i] = arguments.k[from + i];
        arguments.values[to + i] = arguments.v[from + i];
    }
}
