/* The selective scan over (batch, length, channels) in single precision: forward and backward.
 *
 * Sixteen channels are one vector, and a vector's states stay in registers or the first cache while time runs. The
 * forward keeps the states at the start of every CHUNK steps; the backward recomputes those between.
 */
#include "vector.h"

#define CHUNK 16

struct problem {
    int64_t batch, length, channels, states;
    int softplus;
    const float *u, *delta;   /* (batch, length, channels) */
    const float *A;           /* (states, channels) */
    const float *B, *C;       /* (batch, length, states) */
    const float *D, *bias;    /* (channels), or null */
};

INLINE void forward_block(const struct problem *p, int64_t b, int64_t d, float *y, float *kept, const int count,
                          const int states) {
    const int64_t length = p->length, channels = p->channels;
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
                           int64_t group, int64_t b, int64_t d, const int count, const int states) {
    const int64_t length = p->length, channels = p->channels, chunks = (length + CHUNK - 1) / CHUNK;
    float *group_B = g->B + group * p->batch * length * states, *group_C = g->C + group * p->batch * length * states;
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
        const int count = p->channels - d < LANES ? (int)(p->channels - d) : LANES;
        if (p->states == 16 && count == LANES)
            forward_block(p, b, d, y, kept, LANES, 16);
        else
            forward_block(p, b, d, y, kept, count, (int)p->states);
    }
}

/* The channels of one sample are shared among `groups` pieces of work, each with its own sums for B and C. */
void scan_backward(const struct problem *p, const struct gradients *g, const float *grad, const float *kept,
                   int64_t groups, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < p->batch * groups; i++) {
        const int64_t b = i / groups, group = i % groups;
        for (int64_t d = group * LANES; d < p->channels; d += groups * LANES) {
            const int count = p->channels - d < LANES ? (int)(p->channels - d) : LANES;
            if (p->states == 16 && count == LANES)
                backward_block(p, g, grad, kept, group, b, d, LANES, 16);
            else
                backward_block(p, g, grad, kept, group, b, d, count, (int)p->states);
        }
    }
}
