// Matrix units: products of bf16 or f16 summed in float, by the lanes of a warp together. Fragments are as in the PTX
// manual, "mma.m16n8k16": of 16 × 16 on the left and of the result, lane 4 · g + t has rows g and g + 8, of 16 × 8 on
// the right column g.

#ifndef EMULATED
#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)
// c += a · b. Types have the same names in PTX as here.
__device__ inline void multiply(float* c, const u32* a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TEXT(HALF) "." TEXT(HALF) ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Loads four 8 × 8 matrices from shared memory ("ldmatrix"); lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void load_matrices(u32* to, const half_element* row) {
    const u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}
// Loads four matrices likewise, each transposed.
__device__ inline void load_transposed(u32* to, const half_element* row) {
    const u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}
// Copies sixteen bytes from global to shared memory asynchronously ("cp.async"), or zeros unless `is_there`.
// `end_group` groups all copies so far; they have arrived once the group was waited for.
__device__ inline void copy_ahead(Vector* to, const Vector* from, bool is_there) {
    const u32 address = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(address), "l"(from), "r"(is_there ? 16 : 0) : "memory");
}
// Copies four bytes likewise.
__device__ inline void copy_ahead(float* to, const float* from, bool is_there) {
    const u32 address = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" : : "r"(address), "l"(from), "r"(is_there ? 4 : 0) : "memory");
}
__device__ inline void end_group() { asm volatile("cp.async.commit_group;" : : : "memory"); }
__device__ inline void wait_for_groups() { asm volatile("cp.async.wait_group 0;" : : : "memory"); }
#endif

// Returns two neighbours of a fragment as one word.
#if defined(EMULATED) || __CUDA_ARCH__ < 800
__device__ inline u32 pair_of(float first, float second) {
    return (u32)Narrow<half_element>::of(first).bits | (u32)Narrow<half_element>::of(second).bits << 16;
}
#else
__device__ inline u32 pair_of(float first, float second) {
    u32 pair;
    asm("cvt.rn." TEXT(HALF) "x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
#endif
