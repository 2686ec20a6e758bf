/* The selective scan over (batch, length, channels) in single precision: forward and backward.
 *
 * Sixteen channels are one vector, and a vector's states stay in registers or the first cache while time runs. The
 * forward keeps the states at the start of every CHUNK steps; the backward recomputes those between. GCC's vector
 * extension lets the compiler choose the instructions (AVX-512, AVX2, NEON), so nothing here names a processor.
 *
 * Written for GCC and Clang; compiled by dinov2/ops/native.py at first use.
 */
#include <stdint.h>
#include <string.h>

#define LANES 16
#define CHUNK 16

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE vec splat(float value) { return (vec){0} + value; }

INLINE vec select(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* Channels beyond `count` read as 0 and are not written. */
INLINE vec load(const float *from, int count) {
    vec value = {0};
    if (count == LANES)
        memcpy(&value, from, sizeof value);
    else
        memcpy(&value, from, sizeof(float) * count);
    return value;
}

INLINE void store(float *to, vec value, int count) {
    if (count == LANES)
        memcpy(to, &value, sizeof value);
    else
        memcpy(to, &value, sizeof(float) * count);
}

/* exp(x) to one unit in the last place, kept within the normal numbers: at least 2.4e-38, at most 3.3e38.
 * 2^n by adding n to the exponent's bits, exp(r) for |r| <= ln(2) / 2 by a polynomial fitted at Chebyshev nodes with
 * equal relative error (1.9e-8). NaN stays NaN. */
INLINE vec vexp(vec x) {
    const float low = -86.6f, high = 88.7f, magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    x = select(x < low, splat(low), x);
    x = select(x > high, splat(high), x);
    vec shifted = x * 1.44269504f + magic;
    vec n = shifted - magic;
    vec r = x - n * 0.693359375f; /* ln 2 in two parts, the first exact in few bits */
    r = r + n * 2.12194440e-4f;
    vec p = splat(1.3829103e-3f);
    p = p * r + 8.3749918e-3f;
    p = p * r + 4.1668378e-2f;
    p = p * r + 0.16666418f;
    p = p * r + 0.49999991f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

/* softplus(x) = max(x, 0) + log(1 + e), e = exp(-|x|); log(1 + e) = 2 atanh(e / (2 + e)) by its series.
 * Writes its derivative, the logistic function, to `slope`. */
INLINE vec vsoftplus(vec x, vec *slope) {
    ivec negative = x < 0.0f;
    vec e = vexp(select(negative, x, -x));
    vec inverse = 1.0f / (1.0f + e);
    *slope = select(negative, e * inverse, inverse);
    vec s = e / (2.0f + e), q = s * s;
    vec p = splat(1.0f / 15);
    p = p * q + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    p = p * q + 1.0f;
    return select(negative, splat(0.0f), x) + 2.0f * s * p;
}

/* The sums of sixteen vectors as one vector, by halves. */
INLINE vec sums(const vec *v) {
    vec a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = SHUFFLE(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               SHUFFLE(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        b[i] = SHUFFLE(a[i], a[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               SHUFFLE(a[i], a[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        c[i] = SHUFFLE(b[i], b[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               SHUFFLE(b[i], b[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return SHUFFLE(c[0], c[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           SHUFFLE(c[0], c[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

struct problem {
    int64_t batch, length, channels, states;
    int softplus;
    const float *u, *delta;   /* (batch, length, channels) */
    const float *A;           /* (states, channels) */
    const float *B, *C;       /* (batch, length, states) */
    const float *D, *bias;    /* (channels), or null */
};

INLINE void forward_block(const struct problem *p, int64_t b, int64_t d, float *y, float *kept, const int states) {
    const int64_t length = p->length, channels = p->channels;
    const int count = channels - d < LANES ? (int)(channels - d) : LANES;
    vec A[states], h[states], slope;
    const vec skip = p->D ? load(p->D + d, count) : splat(0.0f);
    const vec bias = p->bias ? load(p->bias + d, count) : splat(0.0f);
    for (int n = 0; n < states; n++) {
        A[n] = load(p->A + n * channels + d, count);
        h[n] = splat(0.0f);
    }
    for (int64_t t = 0; t < length; t++) {
        const int64_t row = b * length + t;
        if (kept && t % CHUNK == 0) {
            float *to = kept + ((b * ((length + CHUNK - 1) / CHUNK) + t / CHUNK) * states) * channels + d;
            for (int n = 0; n < states; n++)
                store(to + n * channels, h[n], count);
        }
        const vec u = load(p->u + row * channels + d, count);
        vec step = load(p->delta + row * channels + d, count) + bias;
        if (p->softplus)
            step = vsoftplus(step, &slope);
        const vec driven = step * u;
        const float *B = p->B + row * states, *C = p->C + row * states;
        vec out = skip * u, more = splat(0.0f);
        for (int n = 0; n < states; n += 2) {
            h[n] = h[n] * vexp(step * A[n]) + driven * B[n];
            out += h[n] * C[n];
            if (n + 1 < states) {
                h[n + 1] = h[n + 1] * vexp(step * A[n + 1]) + driven * B[n + 1];
                more += h[n + 1] * C[n + 1];
            }
        }
        store(y + row * channels + d, out + more, count);
    }
}

struct gradients {
    float *u, *delta;    /* (batch, length, channels) */
    float *A;            /* (batch, states, channels), summed over the batch by the caller */
    float *B, *C;        /* (groups, batch, length, states), 0 at entry, summed over the groups by the caller */
    float *D, *bias;     /* (batch, channels), likewise; D null without a skip */
};

INLINE void backward_block(const struct problem *p, const struct gradients *g, const float *grad, const float *kept,
                           int64_t group, int64_t b, int64_t d, const int states) {
    const int64_t length = p->length, channels = p->channels, chunks = (length + CHUNK - 1) / CHUNK;
    float *group_B = g->B + group * p->batch * length * states, *group_C = g->C + group * p->batch * length * states;
    const int count = channels - d < LANES ? (int)(channels - d) : LANES;
    const int padded = (states + LANES - 1) / LANES * LANES;
    vec A[states], grad_A[states], carried[states], before[CHUNK + 1][states], decay[CHUNK][states];
    vec step[CHUNK], slope[CHUNK], for_B[padded], for_C[padded];
    const vec skip = p->D ? load(p->D + d, count) : splat(0.0f);
    const vec bias = p->bias ? load(p->bias + d, count) : splat(0.0f);
    vec grad_D = splat(0.0f), grad_bias = splat(0.0f);
    for (int n = 0; n < states; n++) {
        A[n] = load(p->A + n * channels + d, count);
        grad_A[n] = carried[n] = splat(0.0f);
    }
    for (int n = states; n < padded; n++)
        for_B[n] = for_C[n] = splat(0.0f);
    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
        const int64_t start = chunk * CHUNK;
        const int steps = length - start < CHUNK ? (int)(length - start) : CHUNK;
        const float *from = kept + ((b * chunks + chunk) * states) * channels + d;
        for (int n = 0; n < states; n++)
            before[0][n] = load(from + n * channels, count);
        for (int i = 0; i < steps; i++) {
            const int64_t row = b * length + start + i;
            const float *B = p->B + row * states;
            step[i] = load(p->delta + row * channels + d, count) + bias;
            if (p->softplus)
                step[i] = vsoftplus(step[i], &slope[i]);
            const vec driven = step[i] * load(p->u + row * channels + d, count);
            for (int n = 0; n < states; n++) {
                decay[i][n] = vexp(step[i] * A[n]);
                before[i + 1][n] = before[i][n] * decay[i][n] + driven * B[n];
            }
        }
        for (int i = steps - 1; i >= 0; i--) {
            const int64_t row = b * length + start + i;
            const float *B = p->B + row * states, *C = p->C + row * states;
            const vec u = load(p->u + row * channels + d, count);
            const vec out = load(grad + row * channels + d, count);
            const vec driven = step[i] * u;
            vec grad_driven = splat(0.0f), grad_step = splat(0.0f);
            for (int n = 0; n < states; n++) {
                const vec state = carried[n] + out * C[n]; /* d loss / d h_t */
                for_C[n] = out * before[i + 1][n];
                for_B[n] = state * driven;
                grad_driven += state * B[n];
                carried[n] = state * decay[i][n];
                const vec exponent = carried[n] * before[i][n]; /* d loss / d (step A) */
                grad_A[n] += exponent * step[i];
                grad_step += exponent * A[n];
            }
            for (int n = 0; n < states; n += LANES) {
                const int wanted = states - n < LANES ? states - n : LANES;
                float *to_B = group_B + row * states + n, *to_C = group_C + row * states + n;
                store(to_B, load(to_B, wanted) + sums(for_B + n), wanted);
                store(to_C, load(to_C, wanted) + sums(for_C + n), wanted);
            }
            grad_step += grad_driven * u;
            if (p->softplus)
                grad_step *= slope[i];
            store(g->delta + row * channels + d, grad_step, count);
            store(g->u + row * channels + d, grad_driven * step[i] + skip * out, count);
            grad_bias += grad_step;
            grad_D += out * u;
        }
    }
    for (int n = 0; n < states; n++)
        store(g->A + (b * states + n) * channels + d, grad_A[n], count);
    store(g->bias + b * channels + d, grad_bias, count);
    if (g->D)
        store(g->D + b * channels + d, grad_D, count);
}

/* `kept`: (batch, ceil(length / CHUNK), states, channels), or null when there will be no backward. */
void scan_forward(const struct problem *p, float *y, float *kept, int threads) {
    const int64_t blocks = (p->channels + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < p->batch * blocks; i++) {
        const int64_t b = i / blocks, d = i % blocks * LANES;
        if (p->states == 16)
            forward_block(p, b, d, y, kept, 16);
        else
            forward_block(p, b, d, y, kept, (int)p->states);
    }
}

/* The channels of one sample are shared among `groups` pieces of work, each with its own sums for B and C. */
void scan_backward(const struct problem *p, const struct gradients *g, const float *grad, const float *kept,
                   int64_t groups, int threads) {
    const int64_t blocks = (p->channels + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < p->batch * groups; i++) {
        const int64_t b = i / groups, group = i % groups;
        for (int64_t block = group; block < blocks; block += groups) {
            if (p->states == 16)
                backward_block(p, g, grad, kept, group, b, block * LANES, 16);
            else
                backward_block(p, g, grad, kept, group, b, block * LANES, (int)p->states);
        }
    }
}
