/* Encodes rows for one instruction set: reads, widens, checks and encodes a batch of 4096 weights at a time, so that each is
 * touched once while it is in the first-level cache. KERNEL_SET and RUNS are defined by the file that includes this one. */

#include <stdlib.h>

#include "iq4.h"
#include "plain_blocks.h"
#include "super_blocks.h"
#include "weighted_blocks.h"

/* The largest magnitude of n numbers (a multiple of LANES), as bits: those of NaN and infinity are the largest. */
static uint32_t peak_bits(const float *x, int n)
{
    vi most = i_set(0);
    uint32_t lanes[LANES], peak = 0;
    for (int i = 0; i < n; i += LANES)
        most = i_max_unsigned(most, i_load(x + i) & i_set(0x7fffffff));
    i_store(lanes, most);
    for (int i = 0; i < LANES; i++)
        peak = lanes[i] > peak ? lanes[i] : peak;
    return peak;
}

/* n weights from position `start` as float32: the source itself, or widened or padded with zeros to `whole` in `buffer`. */
static const float *read_weights(const encode_job *job, int64_t start, int n, int whole, float *buffer)
{
    if (job->source == T_F32) {
        const float *x = (const float *)job->src + start;
        if (n == whole)
            return x;
        memcpy(buffer, x, (size_t)n * sizeof *x);
    } else {
        const uint16_t *x = (const uint16_t *)job->src + start;
        for (int i = 0; i < n; i += LANES)
            f_store(buffer + i, job->source == T_F16 ? f_from_f16(x + i) : f_from_bf16(x + i));
    }
    memset(buffer + n, 0, (size_t)(whole - n) * sizeof *buffer);
    return buffer;
}

/* The importances of the columns of n weights from position `start`. */
static void read_importance(const encode_job *job, int64_t start, int n, float *buffer)
{
    for (int i = 0; i < n; i += 32)
        memcpy(buffer + i, job->imatrix + (start + i) % job->n_per_row, 32 * sizeof *buffer);
    memset(buffer + n, 0, (size_t)(BATCH - n) * sizeof *buffer);
}

typedef void super_encoder(batch *b, int supers, const float *x, const float *importance, void *out);
typedef int block_encoder(const float *x, void *out);

typedef struct {
    int type, block, bytes;   /* the type's number, the weights in a block, and its bytes */
    super_encoder *supers;    /* of super-blocks, or of eight blocks of 32 */
    block_encoder *blocks;    /* of blocks of 32, without an importance matrix */
    weighted_encoder *weighted; /* of blocks of 32, with an importance matrix */
} type_encoder;

static const type_encoder type_encoders[] = {
    {T_Q4_0, 32, sizeof(block_q4_0), NULL, encode_q4_0, encode_weighted_q4_0},
    {T_Q4_1, 32, sizeof(block_q4_1), NULL, encode_q4_1, encode_weighted_q4_1},
    {T_Q5_0, 32, sizeof(block_q5_0), NULL, encode_q5_0, encode_weighted_q5_0},
    {T_Q5_1, 32, sizeof(block_q5_1), NULL, encode_q5_1, encode_weighted_q5_1},
    {T_Q8_0, 32, sizeof(block_q8_0), NULL, encode_q8_0, NULL},
    {T_Q2_K, SUPER, sizeof(block_q2_K), encode_q2_K, NULL, NULL},
    {T_Q3_K, SUPER, sizeof(block_q3_K), encode_q3_K, NULL, NULL},
    {T_Q4_K, SUPER, sizeof(block_q4_K), encode_q4_K, NULL, NULL},
    {T_Q5_K, SUPER, sizeof(block_q5_K), encode_q5_K, NULL, NULL},
    {T_Q6_K, SUPER, sizeof(block_q6_K), encode_q6_K, NULL, NULL},
    {T_IQ4_NL, 32, sizeof(block_iq4_nl), encode_iq4_nl, NULL, NULL},
    {T_IQ4_XS, SUPER, sizeof(block_iq4_xs), encode_iq4_xs, NULL, NULL},
};

static void encode_super_batch(encode_job *job, const type_encoder *t, int64_t start, int n, const float *x, const float *importance)
{
    batch b;
    uint8_t out[16 * sizeof(block_q6_K)]; /* the largest super-blocks */
    const int supers = (n + SUPER - 1) / SUPER;
    if (n < BATCH)
        memset(&b, 0, sizeof b);
    b.hard = 0;
    t->supers(&b, supers, x, importance, out);
    uint8_t *dst = job->dst + start / t->block * t->bytes;
    memcpy(dst, out, (size_t)(n / t->block * t->bytes));
    for (int at = 0; at < n; at += SUPER)
        if (b.hard >> at / SUPER & 1) {
            const int count = n - at < SUPER ? n - at : SUPER;
            job->ggml(t->type, x + at, dst + at / t->block * t->bytes, 0, 1, count, importance ? importance + at : NULL);
            job->left += count;
        }
}

/* The mean square of a row, as float32 sums in order: `sigma2` of quantize_row_q4_0_impl. Four rows are summed together. */
typedef struct {
    int64_t first; /* the first of the four rows, or -1 */
    float sigma2[4];
} row_squares;

static float row_mean_square(const encode_job *job, row_squares *known, int64_t row)
{
    enum { PIECE = 1024 };
    float pieces[4 * PIECE], buffer[PIECE];
    if (known->first < 0 || row < known->first || row >= known->first + 4) {
        memset(known->sigma2, 0, sizeof known->sigma2);
        known->first = row;
        for (int64_t at = 0; at < job->n_per_row; at += PIECE) {
            const int n = (int)(job->n_per_row - at < PIECE ? job->n_per_row - at : PIECE);
            for (int i = 0; i < 4; i++) {
                int64_t source = row + i < job->nrows ? row + i : row;
                memcpy(pieces + i * PIECE, read_weights(job, source * job->n_per_row + at, n, n, buffer), (size_t)n * 4);
            }
            add_squares(pieces, PIECE, n, known->sigma2);
        }
        for (int i = 0; i < 4; i++)
            known->sigma2[i] = known->sigma2[i] / (float)job->n_per_row;
    }
    return known->sigma2[row - known->first];
}

/* Leaves a whole row to ggml; returns -1 if there is no memory for it. */
static int leave_row(encode_job *job, const type_encoder *t, int64_t row)
{
    float buffer[1024], *x = malloc((size_t)job->n_per_row * sizeof *x);
    if (!x)
        return -1;
    for (int64_t at = 0; at < job->n_per_row; at += 32)
        memcpy(x + at, read_weights(job, row * job->n_per_row + at, 32, 32, buffer), 32 * sizeof *x);
    job->ggml(t->type, x, job->dst + row * (job->n_per_row / 32) * t->bytes, 0, 1, job->n_per_row, job->imatrix);
    job->left += job->n_per_row;
    free(x);
    return 0;
}

/* A batch of blocks of 32 with an importance matrix. A row with a block that is left to ggml is encoded by it as a whole, because
 * all of the row counts for each block; batches that come later write equal bytes into it. */
static int encode_weighted_batch(encode_job *job, const type_encoder *t, row_squares *known, int64_t start, int n, const float *x,
                                 const float *importance)
{
    weighted_batch w;
    uint8_t out[BATCH / 32 * sizeof(block_q5_1)]; /* the largest of these blocks */
    const int blocks = n / 32;
    if (n < BATCH)
        memset(&w, 0, sizeof w);
    for (int i = 0; i < blocks; i++)
        w.sigma2[i] = row_mean_square(job, known, (start + 32 * i) / job->n_per_row);
    t->weighted(&w, blocks, x, importance, out);
    memcpy(job->dst + start / 32 * t->bytes, out, (size_t)(blocks * t->bytes));
    int64_t left = -1;
    for (int i = 0; i < blocks; i++) {
        const int64_t row = (start + 32 * i) / job->n_per_row;
        if (w.hard[i] && row != left && leave_row(job, t, left = row))
            return -1;
    }
    return 0;
}

static void encode_block_batch(encode_job *job, const type_encoder *t, int64_t start, int n, const float *x)
{
    uint8_t *dst = job->dst + start / 32 * t->bytes;
    for (int i = 0; i < n; i += 32, dst += t->bytes)
        if (!t->blocks(x + i, dst)) {
            job->ggml(t->type, x + i, dst, 0, 1, 32, NULL);
            job->left += 32;
        }
}

static int encode(encode_job *job)
{
    const type_encoder *t = NULL;
    for (size_t i = 0; i < sizeof type_encoders / sizeof *type_encoders; i++)
        if (type_encoders[i].type == job->type)
            t = &type_encoders[i];
    if (!t || job->n_per_row % t->block)
        return -1;
    const int weighted = job->imatrix && (t->weighted || t->supers);
    const int64_t total = job->nrows * job->n_per_row;
    float widened[BATCH], importance[BATCH];
    row_squares known = {-1, {0, 0, 0, 0}};
    job->peak = 0;
    job->left = 0;
    for (int64_t start = 0; start < total; start += BATCH) {
        const int n = (int)(total - start < BATCH ? total - start : BATCH);
        const float *x = read_weights(job, start, n, t->supers || weighted ? BATCH : n, widened);
        const uint32_t peak = peak_bits(x, n);
        if (peak > job->peak)
            job->peak = peak;
        if (peak >= 0x7f800000)
            return 0;
        if (weighted)
            read_importance(job, start, n, importance);
        if (t->supers)
            encode_super_batch(job, t, start, n, x, weighted ? importance : NULL);
        else if (!weighted)
            encode_block_batch(job, t, start, n, x);
        else if (encode_weighted_batch(job, t, &known, start, n, x, importance))
            return -1;
    }
    return 0;
}

const kernel_set KERNEL_SET = {KERNEL_NAME, RUNS, encode};
