/* The parts of EinFFT's transforms that are no matrix products, in single precision. See spectrum.py for the algebra.
 *
 * `fold` and `unfold` work on rows of four blocks of `size` channels; `expand` and `contract` go between half spectra
 * (batch, length, 4, size) and full spectra (4, batch, length, 2, size), real part before imaginary part.
 */
#include <stdint.h>

typedef struct {
    int64_t batch, length, size;
} shape;

void einfft_fold(int64_t rows, int64_t size, const float *restrict x, float *restrict folded, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *in = x + row * 4 * size;
        float *out = folded + row * 4 * size;
        for (int64_t i = 0; i < size; i++) {
            const float even = in[i] + in[2 * size + i], odd = in[size + i] + in[3 * size + i];
            out[i] = 0.5f * (even + odd);
            out[size + i] = 0.5f * (even - odd);
            out[2 * size + i] = 0.5f * (in[i] - in[2 * size + i]);
            out[3 * size + i] = 0.5f * (in[size + i] - in[3 * size + i]);
        }
    }
}

void einfft_unfold(int64_t rows, int64_t size, const float *restrict folded, float *restrict x, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const float *in = folded + row * 4 * size;
        float *out = x + row * 4 * size;
        for (int64_t i = 0; i < size; i++) {
            const float even = in[i] + in[size + i], odd = in[i] - in[size + i];
            out[i] = 0.5f * (even + in[2 * size + i]);
            out[size + i] = 0.5f * (odd + in[3 * size + i]);
            out[2 * size + i] = 0.5f * (even - in[2 * size + i]);
            out[3 * size + i] = 0.5f * (odd - in[3 * size + i]);
        }
    }
}

/* Where a frequency k has a mirror image -k, its row in the full spectrum is mirror(k), else -1. */
static int64_t mirror(int64_t k, int64_t length) {
    return k >= 1 && k <= (length - 1) / 2 ? length / 2 + k : -1;
}

static inline __attribute__((always_inline)) void expand_row(const float *restrict c, const float *restrict sine,
                                                             float sign, int64_t block, int64_t size,
                                                             float *restrict full) {
    float *b0 = full, *b1 = b0 + block, *b2 = b1 + block, *b3 = b2 + block;
    for (int64_t i = 0; i < size; i++) {
        const float p = c[2 * size + i], q = c[3 * size + i];
        const float p_imag = sine ? sign * sine[2 * size + i] : 0.0f, q_imag = sine ? sign * sine[3 * size + i] : 0.0f;
        b0[i] = c[i], b0[size + i] = sine ? sign * sine[i] : 0.0f;
        b2[i] = c[size + i], b2[size + i] = sine ? sign * sine[size + i] : 0.0f;
        b1[i] = p + q_imag, b1[size + i] = p_imag - q;
        b3[i] = p - q_imag, b3[size + i] = p_imag + q;
    }
}

/* Entries become 0 where `mask` lies within +- `threshold`. */
static inline void mask_row(const float *restrict mask, float threshold, int64_t count, float *restrict full) {
    for (int64_t i = 0; i < count; i++) {
        const float size = mask[i] < 0.0f ? -mask[i] : mask[i];
        full[i] = size <= threshold ? 0.0f : full[i];
    }
}

/* `mask`: of the shape of `full`, or null. */
void einfft_expand(const shape *s, const float *half, const float *mask, float threshold, float *full, int threads) {
    const int64_t size = s->size, cosines = s->length / 2 + 1;
    const int64_t block = s->batch * s->length * 2 * size;
#pragma omp parallel for num_threads(threads) collapse(2)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t k = 0; k < cosines; k++) {
            const int64_t rows[2] = {k, mirror(k, s->length)};
            const float *c = half + (b * s->length + k) * 4 * size;
            const float *sine = half + (b * s->length + cosines + k - 1) * 4 * size;
            for (int image = 0; image < (rows[1] < 0 ? 1 : 2); image++) {
                const int64_t at = (b * s->length + rows[image]) * 2 * size;
                if (rows[1] < 0)
                    expand_row(c, 0, 1.0f, block, size, full + at);
                else
                    expand_row(c, sine, image ? -1.0f : 1.0f, block, size, full + at);
                for (int n = 0; mask && n < 4; n++)
                    mask_row(mask + n * block + at, threshold, 2 * size, full + n * block + at);
            }
        }
}

/* Softshrink, x less x kept within +- `by`; NaN stays NaN. */
static inline float shrink(float x, float by) {
    const float above = x > -by ? x : -by;
    return x - (above < by ? above : by);
}

/* The rows of one frequency, and of its mirror image where it has one, added into the half spectrum. */
static inline __attribute__((always_inline)) void contract_row(const float *restrict full, const float *restrict image,
                                                               int64_t block, int64_t size, float t,
                                                               float *restrict c, float *restrict sine) {
    const float *b0 = full, *b1 = b0 + block, *b2 = b1 + block, *b3 = b2 + block;
    const float *m0 = image, *m1 = m0 + block, *m2 = m1 + block, *m3 = m2 + block;
    for (int64_t i = 0; i < size; i++) {
        const int64_t j = size + i;
        const float r0 = shrink(b0[i], t), r1 = shrink(b1[i], t), r2 = shrink(b2[i], t), r3 = shrink(b3[i], t);
        const float i0 = shrink(b0[j], t), i1 = shrink(b1[j], t), i2 = shrink(b2[j], t), i3 = shrink(b3[j], t);
        float real0 = r0, real2 = r2, sum = r1 + r3, turned = i3 - i1;
        if (image) {
            const float s0 = shrink(m0[i], t), s1 = shrink(m1[i], t), s2 = shrink(m2[i], t), s3 = shrink(m3[i], t);
            const float k0 = shrink(m0[j], t), k1 = shrink(m1[j], t), k2 = shrink(m2[j], t), k3 = shrink(m3[j], t);
            real0 += s0, real2 += s2, sum += s1 + s3, turned += k3 - k1;
            sine[i] = i0 - k0, sine[j] = i2 - k2;
            sine[2 * size + i] = i1 + i3 - k1 - k3, sine[3 * size + i] = r1 - r3 - s1 + s3;
        }
        c[i] = real0, c[j] = real2, c[2 * size + i] = sum, c[3 * size + i] = turned;
    }
}

/* The transpose of einfft_expand, applied to softshrink(full). */
void einfft_contract(const shape *s, const float *full, float threshold, float *half, int threads) {
    const int64_t size = s->size, cosines = s->length / 2 + 1;
    const int64_t block = s->batch * s->length * 2 * size;
#pragma omp parallel for num_threads(threads) collapse(2)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t k = 0; k < cosines; k++) {
            const int64_t other = mirror(k, s->length);
            const float *row = full + (b * s->length + k) * 2 * size;
            float *c = half + (b * s->length + k) * 4 * size;
            if (other < 0)
                contract_row(row, 0, block, size, threshold, c, 0);
            else
                contract_row(row, full + (b * s->length + other) * 2 * size, block, size, threshold, c,
                             half + (b * s->length + cosines + k - 1) * 4 * size);
        }
}
