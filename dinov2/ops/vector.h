/* Vectors of sixteen floats and what the kernels compute with them.
 *
 * GCC's vector extension lets the compiler choose the instructions (AVX-512, AVX2, NEON), so nothing here names a
 * processor. Written for GCC and Clang; included by the kernels that dinov2/ops/native.py compiles at first use.
 */
#include <stdint.h>
#include <string.h>

#define LANES 16

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE vec splat(float value) { return (vec){0} + value; }

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

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

/* exp(x) to one unit in the last place, kept between exp(-85) = 1.2e-37 (see decay.py) and 3.3e38.
 * 2^n by adding n to the exponent's bits, exp(r) for |r| <= ln(2) / 2 by a polynomial fitted at Chebyshev nodes with
 * equal relative error (1.9e-8). NaN stays NaN. */
INLINE vec vexp(vec x) {
    const float low = -85.0f, high = 88.7f, magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    x = choose(x < low, splat(low), x);
    x = choose(x > high, splat(high), x);
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
    return choose(x != x, x, (vec)((ivec)p + ((ivec)shifted << 23)));
}

/* softplus(x) = max(x, 0) + log(1 + e), e = exp(-|x|); log(1 + e) = 2 atanh(e / (2 + e)) by its series.
 * Writes its derivative, the logistic function, to `slope`. */
INLINE vec vsoftplus(vec x, vec *slope) {
    ivec negative = x < 0.0f;
    vec e = vexp(choose(negative, x, -x));
    vec inverse = 1.0f / (1.0f + e);
    *slope = choose(negative, e * inverse, inverse);
    vec s = e / (2.0f + e), q = s * s;
    vec p = splat(1.0f / 15);
    p = p * q + 1.0f / 13;
    p = p * q + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    p = p * q + 1.0f;
    return choose(negative, splat(0.0f), x) + 2.0f * s * p;
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
