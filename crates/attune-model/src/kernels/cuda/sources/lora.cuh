// Arguments of the kernels for adapters.

// The update of one adapter to some rows of one of the outputs that share an input.
struct Task {
    const element* a; // [rank, input]
    const element* b; // [output, rank]
    u32 start;        // First row.
    u32 rows;         // Number of rows.
    u16 rank;
    u16 output;       // Index of the output.
    float scale;
};

const u32 OUTPUTS = 3;

#if TASKS > 0
struct Lora {
    const element* x; // [all rows, input]
    float* shrunk;    // [outputs, all rows, most]
    element* outputs[OUTPUTS];
    u32 widths[OUTPUTS];
    u32 input;
    u32 all_rows;
    u32 most; // The largest rank.
    Task tasks[TASKS];
};
#endif
