/* A depthwise convolution along the tokens of (batch, length, channels), then SiLU, in single precision.
 *
 * Output t sees the inputs t - before to t - before + width - 1; those outside the sequence are 0.
 */
#include "vector.h"

#define MAX_WIDTH 16

struct conv {
    int64_t batch, length, channels, width, before;
    const float *x;            /* (batch, length, channels) */
    const float *weight, *bias; /* (width, channels), (channels) or null */
};

/* The sum over the taps of a row's neighbours; `inside` promises that none lies outside the sequence. */
INLINE vec convolve(const struct conv *p, const vec *weight, vec bias, int64_t b, int64_t t, int64_t d, int count,
                    const int width, const int inside) {
    vec sum = bias;
    for (int k = 0; k < width; k++) {
        const int64_t from = t + k - p->before;
        if (inside || (from >= 0 && from < p->length))
            sum += weight[k] * load(p->x + (b * p->length + from) * p->channels + d, count);
    }
    return sum;
}

INLINE vec logistic(vec x) { return 1.0f / (1.0f + vexp(-x)); }

INLINE int is_inside(const struct conv *p, int64_t t) { return t >= p->before && t + p->width - p->before <= p->length; }

INLINE void load_parameters(const struct conv *p, int64_t d, int count, vec *weight, vec *bias) {
    for (int64_t k = 0; k < p->width; k++)
        weight[k] = load(p->weight + k * p->channels + d, count);
    *bias = p->bias ? load(p->bias + d, count) : splat(0.0f);
}

INLINE void forward_block(const struct conv *p, int64_t b, int64_t d, float *y, const int count, const int width) {
    vec weight[MAX_WIDTH], bias;
    load_parameters(p, d, count, weight, &bias);
    for (int64_t t = 0; t < p->length; t++) {
        const vec sum = is_inside(p, t) ? convolve(p, weight, bias, b, t, d, count, width, 1)
                                        : convolve(p, weight, bias, b, t, d, count, width, 0);
        store(y + (b * p->length + t) * p->channels + d, sum * logistic(sum), count);
    }
}

struct gradients {
    float *x, *weight, *bias; /* (batch, length, channels), (batch, width, channels), (batch, channels) */
    float *scratch;           /* (batch, length, channels): those of the sums before SiLU */
};

INLINE void backward_block(const struct conv *p, const struct gradients *g, const float *grad, int64_t b, int64_t d,
                           const int count, const int width) {
    const int64_t first = b * p->length * p->channels + d;
    vec weight[MAX_WIDTH], sums[MAX_WIDTH], bias, sum_bias = splat(0.0f);
    load_parameters(p, d, count, weight, &bias);
    for (int k = 0; k < width; k++)
        sums[k] = splat(0.0f);
    for (int64_t t = 0; t < p->length; t++) {
        const int inside = is_inside(p, t);
        const vec sum = inside ? convolve(p, weight, bias, b, t, d, count, width, 1)
                               : convolve(p, weight, bias, b, t, d, count, width, 0);
        const vec s = logistic(sum);
        const vec of_sum = load(grad + first + t * p->channels, count) * s * (1.0f + sum * (1.0f - s));
        store(g->scratch + first + t * p->channels, of_sum, count);
        sum_bias += of_sum;
        for (int k = 0; k < width; k++) {
            const int64_t from = t + k - p->before;
            if (inside || (from >= 0 && from < p->length))
                sums[k] += of_sum * load(p->x + first + from * p->channels, count);
        }
    }
    for (int64_t t = 0; t < p->length; t++) {
        vec sum = splat(0.0f);
        for (int k = 0; k < width; k++) {
            const int64_t to = t - k + p->before;
            if (to >= 0 && to < p->length)
                sum += weight[k] * load(g->scratch + first + to * p->channels, count);
        }
        store(g->x + first + t * p->channels, sum, count);
    }
    for (int k = 0; k < width; k++)
        store(g->weight + (b * p->width + k) * p->channels + d, sums[k], count);
    store(g->bias + b * p->channels + d, sum_bias, count);
}

void conv_forward(const struct conv *p, float *y, int threads) {
    const int64_t blocks = (p->channels + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < p->batch * blocks; i++) {
        const int64_t b = i / blocks, d = i % blocks * LANES;
        const int count = p->channels - d < LANES ? (int)(p->channels - d) : LANES;
        if (count == LANES && p->width == 4)
            forward_block(p, b, d, y, LANES, 4);
        else
            forward_block(p, b, d, y, count, (int)p->width);
    }
}

void conv_backward(const struct conv *p, const struct gradients *g, const float *grad, int threads) {
    const int64_t blocks = (p->channels + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < p->batch * blocks; i++) {
        const int64_t b = i / blocks, d = i % blocks * LANES;
        const int count = p->channels - d < LANES ? (int)(p->channels - d) : LANES;
        if (count == LANES && p->width == 4)
            backward_block(p, g, grad, b, d, LANES, 4);
        else
            backward_block(p, g, grad, b, d, count, (int)p->width);
    }
}
