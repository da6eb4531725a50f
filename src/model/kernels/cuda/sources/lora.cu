// The low-rank parts of all adapters of a step, in two launches whatever their number and ranks: `shrink` computes s · A x
// for each task, `expand` adds B of that to the task's rows (Chen et al., "Punica", 2023; Sheng et al., "S-LoRA", 2023).

// Blocks: (tasks, warps of ranks). Each warp takes one row of A through the task's rows.
KERNEL(shrink, Lora) {
    const Task& task = arguments.tasks[blockIdx.x];
    const u32 rank = blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (rank >= task.rank) return;
    const element* a = task.a + (u64)rank * arguments.input;
    for (u32 i = 0; i < task.rows; i++) {
        const u64 row = task.start + i;
        const float sum = warp_dot(arguments.x + row * arguments.input, a, arguments.input);
        if (lane_of_warp() == 0)
            arguments.shrunk[((u64)task.output * arguments.all_rows + row) * arguments.most + rank] = sum * task.scale;
    }
}

// Blocks: (tasks, columns of the widest output). Each thread takes one row of B, one column of the output.
KERNEL(expand, Lora) {
    const Task& task = arguments.tasks[blockIdx.x];
    const u32 width = arguments.widths[task.output];
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const element* b = task.b + (u64)column * task.rank;
    for (u32 i = 0; i < task.rows; i++) {
        const u64 row = task.start + i;
        const float* shrunk = arguments.shrunk + ((u64)task.output * arguments.all_rows + row) * arguments.most;
        float sum = 0.0f;
        for (u32 rank = 0; rank < task.rank; rank++) sum += wide(b[rank]) * shrunk[rank];
        element* y = arguments.outputs[task.output] + row * width + column;
        // An adapter whose B is 0 changes no bit, not even the sign of a zero.
        if (sum != 0.0f) *y = narrow(wide(*y) + sum);
    }
}
