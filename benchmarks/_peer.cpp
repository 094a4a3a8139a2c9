// Times to a loss level from many starts, as a good hand-coder would write it for one machine.
//
// Every lane of a SIMD register is a start with its own adaptive step; a lane that is done takes
// the next start at once, so that none waits for another. Values come in pairs of registers: the
// second hides the latency of the first. The field is a function of the state alone. Clocks: the
// margin, which ends on the level exactly; and, for the one step that meets a wall, the distance
// from it, which ends on the wall exactly.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#ifndef PROBLEM
#define PROBLEM 0  // 0: ratio plane, 1: kernel, 2: box, 3: simplex
#endif
#ifndef REAL
#define REAL double
#endif
#ifndef METHOD
#define METHOD Tsit5  // or Dopri853
#endif

#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

namespace {

// ---- Lanes -------------------------------------------------------------------------------------

template <class T> struct Machine;

template <> struct Machine<double> {
  typedef double Real __attribute__((vector_size(BYTES)));
  typedef int64_t Int __attribute__((vector_size(BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(BYTES)));
  static constexpr int mantissa = 52;
  static constexpr double rounder = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int64_t root_half = 0x3fe6a09e667f3bcdLL;
};

template <> struct Machine<float> {
  typedef float Real __attribute__((vector_size(BYTES)));
  typedef int32_t Int __attribute__((vector_size(BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(BYTES)));
  static constexpr int mantissa = 23;
  static constexpr float rounder = 12582912.0f;  // 1.5 * 2^23
  static constexpr int32_t root_half = 0x3f3504f3;
};

template <class T> using Real = typename Machine<T>::Real;
template <class T> using Int = typename Machine<T>::Int;
template <class T> using Bits = typename Machine<T>::Bits;

template <class T> struct Mask {
  Int<T> a, b;
};

template <class T> struct Pack {
  Real<T> a, b;
  static constexpr int lanes = 2 * BYTES / sizeof(T);

  static INLINE Pack of(double value) {
    const Real<T> each = T(value) - Real<T>{};
    return {each, each};
  }
  T *lane() { return reinterpret_cast<T *>(this); }
};

#define FOR_EACH(o)                                                                           \
  template <class T> INLINE Pack<T> operator o(Pack<T> x, Pack<T> y) {                        \
    return {x.a o y.a, x.b o y.b};                                                            \
  }                                                                                           \
  template <class T> INLINE Pack<T> operator o(Pack<T> x, double y) {                         \
    return {x.a o T(y), x.b o T(y)};                                                          \
  }                                                                                           \
  template <class T> INLINE Pack<T> operator o(double x, Pack<T> y) {                         \
    return {T(x) o y.a, T(x) o y.b};                                                          \
  }
FOR_EACH(+)
FOR_EACH(-)
FOR_EACH(*)
FOR_EACH(/)

template <class T> INLINE Pack<T> operator-(Pack<T> x) { return {-x.a, -x.b}; }

template <class T> INLINE Mask<T> operator<=(Pack<T> x, double y) {
  return {x.a <= T(y), x.b <= T(y)};
}

template <class T> INLINE Mask<T> operator>(Pack<T> x, double y) {
  return {x.a > T(y), x.b > T(y)};
}

template <class T> INLINE Mask<T> operator&(Mask<T> x, Mask<T> y) { return {x.a & y.a, x.b & y.b}; }

template <class T> INLINE Mask<T> operator~(Mask<T> x) { return {~x.a, ~x.b}; }

template <class T> INLINE Pack<T> select(Mask<T> m, Pack<T> x, Pack<T> y) {
  return {m.a ? x.a : y.a, m.b ? x.b : y.b};
}

template <class T> INLINE Pack<T> smaller(Pack<T> x, Pack<T> y) {
  return {x.a < y.a ? x.a : y.a, x.b < y.b ? x.b : y.b};
}

template <class T> INLINE Pack<T> larger(Pack<T> x, Pack<T> y) {
  return {x.a > y.a ? x.a : y.a, x.b > y.b ? x.b : y.b};
}

template <class T> INLINE bool any(Mask<T> m) {
  const Int<T> both = m.a | m.b;
  int64_t word[BYTES / 8], all = 0;
  std::memcpy(word, &both, BYTES);
  for (int64_t each : word) all |= each;
  return all != 0;
}

// ---- Functions ---------------------------------------------------------------------------------

// Minimax polynomials of exp on [-log(2)/2, log(2)/2]; relative errors 2e-16 and 2e-9.
template <class T> struct Exponential;

template <> struct Exponential<double> {
  static constexpr double c[] = {1.0,
                                 1.0000000000000064426,
                                 0.49999999999997287073,
                                 0.1666666666655774177,
                                 0.041666666668425981141,
                                 0.0083333333846656128859,
                                 0.0013888888499146296458,
                                 0.0001984117138442271033,
                                 0.000024801917680157919482,
                                 2.7639768183381514845e-6,
                                 2.7488446194124010924e-7};
  static constexpr int degree = 10;
};

template <> struct Exponential<float> {
  static constexpr float c[] = {1.0f,          1.0000000363f,  0.49999992080f,  0.16666420170f,
                                0.0416682256f, 0.00837481578f, 0.00138368461f};
  static constexpr int degree = 6;
};

constexpr double LOG_2 = 0.693147180559945309417;

// exp(c x) for |c x| < 700 (87 for float), to a few units in the last place for |c x| < 20.
template <class T> INLINE Real<T> exponential(Real<T> x, T c) {
  using E = Exponential<T>;
  const Real<T> shifted = x * T(c / LOG_2) + Machine<T>::rounder;
  const Real<T> whole = shifted - Machine<T>::rounder;
  const Real<T> r = whole * T(-LOG_2) + x * c, r2 = r * r;
  Real<T> even = E::c[E::degree] - Real<T>{}, odd = E::c[E::degree - 1] - Real<T>{};
#pragma GCC unroll 8
  for (int k = E::degree - 2; k >= 0; k -= 2) even = even * r2 + E::c[k];
#pragma GCC unroll 8
  for (int k = E::degree - 3; k >= 1; k -= 2) odd = odd * r2 + E::c[k];
  return (Real<T>)((Int<T>)(odd * r + even) + ((Int<T>)shifted << Machine<T>::mantissa));
}

template <class T> INLINE Pack<T> exponential(Pack<T> x, double c) {
  return {exponential<T>(x.a, T(c)), exponential<T>(x.b, T(c))};
}

// log x of positive numbers: x = 2^k m with m in [sqrt(1/2), sqrt 2), log m = 2 artanh s.
template <class T> INLINE Real<T> logarithm(Real<T> x) {
  constexpr int digits = Machine<T>::mantissa;
  const Int<T> bits = (Int<T>)x - Machine<T>::root_half;
  const Int<T> fraction = bits & ((decltype(Machine<T>::root_half)(1) << digits) - 1);
  const Real<T> m = (Real<T>)(fraction + Machine<T>::root_half);
  const Real<T> zero = Machine<T>::rounder - Real<T>{};
  const Real<T> k = (Real<T>)((bits >> digits) + (Int<T>)zero) - Machine<T>::rounder;
  const Real<T> s = (m - 1) / (m + 1), s2 = s * s;
  Real<T> series = T(2.0 / 21) - Real<T>{};
#pragma GCC unroll 16
  for (int odd = 19; odd >= 1; odd -= 2) series = series * s2 + T(2.0 / odd);
  return k * T(LOG_2) + series * s;
}

template <class T> INLINE Pack<T> logarithm(Pack<T> x) {
  return {logarithm<T>(x.a), logarithm<T>(x.b)};
}

// x^p to some percent, for the controller: the bits of a number are nearly its logarithm.
INLINE Real<double> rough_power(Real<double> x, double p) {
  constexpr double two_52 = 4503599627370496.0, one = 1072693248.0;  // high word of 1.0
  const Bits<double> high = (Bits<double>)x >> 32;
  const Real<double> log = (Real<double>)(high | 0x4330000000000000ULL) - two_52;
  const Real<double> result = log * p + ((1 - p) * one + two_52);
  return (Real<double>)((Bits<double>)result << 32);
}

INLINE Real<float> rough_power(Real<float> x, float p) {
  constexpr float one = 1065353216.0f;  // bits of 1.0
  const Real<float> log = __builtin_convertvector((Int<float>)x, Real<float>);
  return (Real<float>)__builtin_convertvector(log * p + (1 - p) * one, Int<float>);
}

template <class T> INLINE Pack<T> rough_power(Pack<T> x, double p) {
  return {rough_power(x.a, T(p)), rough_power(x.b, T(p))};
}

// ---- Fields ------------------------------------------------------------------------------------

// What a lane does: move freely and look for the wall, make the step that ends on the wall, slide
// along it, move freely where no wall can be met.
enum class Doing { watching, landing, sliding, free, done };

template <class T> struct Masks {
  Mask<T> watching, landing, sliding;
};

struct Parameters {
  double beta, end, wall, chosen, rejected;  // margin at the end, log of the wall, kernel's speeds
};

// A field knows where its lines begin, what follows what, how long each lasts in units of its
// clock, and its rates per unit of the clock. State: u_chosen, u_rejected, t.
template <class T> struct Open {
  static constexpr bool walled = false;
  Parameters p;

  static Doing before(T, T) { return Doing::free; }
  static Doing after(Doing) { return Doing::done; }
  T length(Doing, T chosen, T rejected) const { return T(p.end) - (chosen - rejected); }
};

template <class T> struct Ratio : Open<T> {
  INLINE void enter(Pack<T> *y) const { y[0] = logarithm(y[0]), y[1] = logarithm(y[1]); }

  INLINE void operator()(const Pack<T> *y, const Masks<T> &, Pack<T> *rate) const {
    const double beta = this->p.beta;
    const Pack<T> up = exponential(y[0], -2), down = exponential(y[1], -2);
    const Pack<T> unit = 1 / (up + down);
    rate[0] = up * unit;
    rate[1] = -(down * unit);
    rate[2] = (1 + exponential(y[0] - y[1], beta)) * (unit * (1 / beta));
  }
};

template <class T> struct Kernel : Open<T> {
  INLINE void enter(Pack<T> *) const {}

  INLINE void operator()(const Pack<T> *y, const Masks<T> &, Pack<T> *rate) const {
    const double unit = 1 / (this->p.chosen - this->p.rejected);
    rate[0] = Pack<T>::of(this->p.chosen * unit);
    rate[1] = Pack<T>::of(this->p.rejected * unit);
    rate[2] = (1 + exponential(y[0] - y[1], this->p.beta)) * (unit / this->p.beta);
  }
};

// x_chosen at most e^wall, where its velocity is dropped; the landing's clock is u_chosen.
template <class T> struct Box : Ratio<T> {
  static constexpr bool walled = true;

  static Doing before(T, T) { return Doing::watching; }
  static Doing after(Doing was) { return was == Doing::landing ? Doing::sliding : Doing::done; }
  T length(Doing what, T chosen, T rejected) const {
    return T(what == Doing::landing ? this->p.wall - chosen : this->p.end - (chosen - rejected));
  }
  INLINE Mask<T> outside(const Pack<T> *y) const { return y[0] > this->p.wall; }

  INLINE void operator()(const Pack<T> *y, const Masks<T> &doing, Pack<T> *rate) const {
    const double beta = this->p.beta;
    const Pack<T> free = exponential(y[0], -2), down = exponential(y[1], -2);
    const Pack<T> up = select(doing.sliding, Pack<T>::of(0), free);
    const Pack<T> unit = 1 / select(doing.landing, free, up + down);
    rate[0] = up * unit;
    rate[1] = -(down * unit);
    rate[2] = (1 + exponential(y[0] - y[1], beta)) * (unit * (1 / beta));
  }
};

// x_chosen + x_rejected at most 1, the landing's clock. The flow presses outward while the margin
// is negative: a watch and a slide end where it is 0, and after that no wall is met.
template <class T> struct Simplex : Ratio<T> {
  static constexpr bool walled = true;

  static Doing before(T chosen, T rejected) {
    return chosen < rejected ? Doing::watching : Doing::free;
  }
  static Doing after(Doing was) {
    if (was == Doing::landing) return Doing::sliding;
    return was == Doing::free ? Doing::done : Doing::free;
  }
  T length(Doing what, T chosen, T rejected) const {
    if (what == Doing::landing) return 1 - std::exp(chosen) - std::exp(rejected);
    return T(what == Doing::free ? this->p.end : 0) - (chosen - rejected);
  }
  INLINE Mask<T> outside(const Pack<T> *y) const {
    return exponential(y[0], 1) + exponential(y[1], 1) > 1;
  }

  INLINE void operator()(const Pack<T> *y, const Masks<T> &doing, Pack<T> *rate) const {
    const double beta = this->p.beta;
    const Pack<T> chosen = exponential(y[0], -1), rejected = exponential(y[1], -1);
    const Pack<T> along = (chosen + rejected) * 0.5;
    const Pack<T> up = select(doing.sliding, along, chosen) * chosen;
    const Pack<T> down = select(doing.sliding, along, rejected) * rejected;
    const Pack<T> unit = 1 / select(doing.landing, chosen - rejected, up + down);
    rate[0] = up * unit;
    rate[1] = -(down * unit);
    rate[2] = (1 + exponential(y[0] - y[1], beta)) * (unit * (1 / beta));
  }
};

// ---- Methods -----------------------------------------------------------------------------------

// `first` times rtol^(1/order) is the first step, in units of the margin, found by trial.
struct Tsit5 {
  static constexpr int stages = 6, order = 5;
  static constexpr double first = 3.7, safety = 0.9;
  static constexpr double a[7][7] = {
      {},
      {0.161},
      {-0.008480655492356989, 0.335480655492357},
      {2.8971530571054935, -6.359448489975075, 4.3622954328695815},
      {5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525},
      {5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
       -0.028269050394068383},
      {0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
       2.324710524099774}};
  static constexpr double e[7] = {0.001780011052225777, 0.0008164344596567469,
                                  -0.007880878010261995, 0.1447110071732629,
                                  -0.5823571654525552, 0.45808210592918697,
                                  -0.015151515151515152};
};

struct Dopri853 {
  static constexpr int stages = 12, order = 8;
  static constexpr double first = 2.5, safety = 0.87;
  static constexpr double a[13][13] = {
      {},
      {0.05260015195876773},
      {0.0197250569845379, 0.0591751709536137},
      {0.02958758547680685, 0, 0.08876275643042054},
      {0.2413651341592667, 0, -0.8845494793282861, 0.924834003261792},
      {0.037037037037037035, 0, 0, 0.17082860872947386, 0.12546768756682242},
      {0.037109375, 0, 0, 0.17025221101954405, 0.06021653898045596, -0.017578125},
      {0.03709200011850479, 0, 0, 0.17038392571223998, 0.10726203044637328,
       -0.015319437748624402, 0.008273789163814023},
      {0.6241109587160757, 0, 0, -3.3608926294469414, -0.868219346841726, 27.59209969944671,
       20.154067550477894, -43.48988418106996},
      {0.47766253643826434, 0, 0, -2.4881146199716677, -0.590290826836843, 21.230051448181193,
       15.279233632882423, -33.28821096898486, -0.020331201708508627},
      {-0.9371424300859873, 0, 0, 5.186372428844064, 1.0914373489967295, -8.149787010746927,
       -18.52006565999696, 22.739487099350505, 2.4936055526796523, -3.0467644718982196},
      {2.273310147516538, 0, 0, -10.53449546673725, -2.0008720582248625, -17.9589318631188,
       27.94888452941996, -2.8589982771350235, -8.87285693353063, 12.360567175794303,
       0.6433927460157636},
      {0.054293734116568765, 0, 0, 0, 0, 4.450312892752409, 1.8915178993145003,
       -5.801203960010585, 0.3111643669578199, -0.1521609496625161, 0.20136540080403034,
       0.04471061572777259}};
  static constexpr double e[13] = {0.01312004499419488, 0, 0, 0, 0, -1.2251564463762044,
                                   -0.4957589496572502, 1.6643771824549864,
                                   -0.35032884874997366, 0.3341791187130175,
                                   0.08192320648511571, -0.022355307863886294, 0};
  static constexpr double e3[13] = {-0.18980075407240762, 0, 0, 0, 0, 4.450312892752409,
                                    1.8915178993145003, -5.801203960010585, -0.4226823213237919,
                                    -0.1521609496625161, 0.20136540080403034,
                                    0.02265179219836082, 0};
};

constexpr double GROWTH = 8, SHRINKAGE = 0.2, NO_ERROR = 1e-30;

template <class M, int i, class T, int... j>
INLINE Pack<T> combined(const Pack<T> (*rate)[3], int c, std::integer_sequence<int, j...>) {
  Pack<T> sum = M::a[i][0] * rate[0][c];
  ((j > 0 && M::a[i][j] != 0 ? (void)(sum = sum + M::a[i][j] * rate[j][c]) : (void)0), ...);
  return sum;
}

// What is known early is added first: the newest rate is one operation away from the result.
template <class M, int i, class T, class F>
INLINE void stage(const F &field, const Pack<T> *y, const Masks<T> &doing, Pack<T> step,
                  Pack<T> (*rate)[3], Pack<T> *at) {
  const Pack<T> newest = step * M::a[i][i - 1];
  for (int c = 0; c < 3; ++c) {
    at[c] = y[c];
    if constexpr (i > 1)
      at[c] = at[c] + step * combined<M, i>(rate, c, std::make_integer_sequence<int, i - 1>());
    at[c] = at[c] + newest * rate[i - 1][c];
  }
  field(at, doing, rate[i]);
}

template <class M, class T, class F, int... i>
INLINE void stages(const F &field, const Pack<T> *y, const Masks<T> &doing, Pack<T> step,
                   Pack<T> (*rate)[3], Pack<T> *at, std::integer_sequence<int, i...>) {
  (stage<M, i + 1>(field, y, doing, step, rate, at), ...);
}

template <int n, class T>
INLINE Pack<T> squared(const double (&weights)[n], const Pack<T> (*rate)[3], Pack<T> per_time) {
  Pack<T> total = Pack<T>::of(0);
  for (int c = 0; c < 3; ++c) {
    Pack<T> sum = weights[0] * rate[0][c];
#pragma GCC unroll 16
    for (int j = 1; j < n; ++j)
      if (weights[j] != 0) sum = sum + weights[j] * rate[j][c];
    if (c == 2) sum = sum * per_time;
    total = total + sum * sum;
  }
  return total;
}

// Square of the error in units of the tolerance: relative in x and in the time.
template <class M, class T>
INLINE Pack<T> error(const Pack<T> (*rate)[3], Pack<T> step, Pack<T> time, double rtol) {
  const Pack<T> per_time = 1 / time, scale = step * (1 / rtol);
  const Pack<T> fifth = squared(M::e, rate, per_time);
  const Pack<T> all = scale * scale * fifth * (1.0 / 3);
  if constexpr (M::order == 8) {
    const Pack<T> third = squared(M::e3, rate, per_time);
    return all * (fifth / (fifth + 0.01 * third + std::numeric_limits<T>::min()));
  }
  return all;
}

template <class M, class T> INLINE Pack<T> growth(Pack<T> off) {
  const Pack<T> some = larger(off, Pack<T>::of(NO_ERROR));
  const Pack<T> factor = M::safety * rough_power(some, -0.5 / M::order);
  return smaller(larger(factor, Pack<T>::of(SHRINKAGE)), Pack<T>::of(GROWTH));
}

// ---- The loop ----------------------------------------------------------------------------------

constexpr int MOST_TRIES = 4096;  // steps of one start
constexpr long NONE = -1;

template <class T> struct Work {
  const T *starts;
  long count;
  double rtol;
  T *times;
  int *tries;
  std::atomic<long> next{0};
};

template <class M, class F, class T> struct Worker {
  static constexpr int lanes = Pack<T>::lanes;
  F field;
  Work<T> &work;
  const T first = T(M::first * std::pow(work.rtol, 1.0 / M::order));

  Pack<T> y[3] = {}, rate[M::stages + 1][3] = {}, left = {}, step = {};
  Masks<T> masks = {};
  Mask<T> changed = {};
  Doing doing[lanes] = {};
  long start[lanes] = {};
  int born[lanes] = {}, now = 0, busy = 0;

  // Starts in waiting: as many as there are lanes, prepared together.
  Pack<T> waiting[2] = {}, waiting_rate[3] = {};
  long waiting_start = 0;
  int waiting_at = 0, waiting_count = 0;

  static auto *lane(Mask<T> &mask) {
    return reinterpret_cast<decltype(+Machine<T>::root_half) *>(&mask);
  }

  bool fetch() {
    waiting_start = work.next.fetch_add(lanes), waiting_at = 0;
    waiting_count = int(std::clamp<long>(work.count - waiting_start, 0, lanes));
    if (waiting_count == 0) return false;
    Pack<T> at[3] = {};
    for (int i = 0; i < lanes; ++i) {
      const T *x = work.starts + 2 * (waiting_start + std::min(i, waiting_count - 1));
      at[0].lane()[i] = x[0], at[1].lane()[i] = x[1];
    }
    field.enter(at);
    field(at, Masks<T>{}, waiting_rate);
    waiting[0] = at[0], waiting[1] = at[1];
    return true;
  }

  void take(int i) {
    const int from = waiting_at++;
    start[i] = waiting_start + from, born[i] = now, step.lane()[i] = first;
    for (int c = 0; c < 2; ++c) y[c].lane()[i] = waiting[c].lane()[from];
    for (int c = 0; c < 3; ++c) rate[0][c].lane()[i] = waiting_rate[c].lane()[from];
    y[2].lane()[i] = 0;
  }

  void fill(int i) {
    while (waiting_at < waiting_count || fetch()) {
      take(i);
      if (begin(i, F::before(y[0].lane()[i], y[1].lane()[i]))) return;
      record(i, 0);
    }
    start[i] = NONE, left.lane()[i] = 0, y[2].lane()[i] = 1, --busy;
  }

  void record(int i, T time) {
    work.times[start[i]] = time, work.tries[start[i]] = now - born[i];
  }

  // Begin something, or what comes after it if it has no length; false where nothing is left.
  bool begin(int i, Doing what) {
    T length = 0;
    while (what != Doing::done) {
      length = field.length(what, y[0].lane()[i], y[1].lane()[i]);
      if (length > 0) break;
      what = F::after(what);
    }
    left.lane()[i] = length;
    if constexpr (F::walled) {
      doing[i] = what;
      lane(masks.watching)[i] = -(what == Doing::watching);
      lane(masks.landing)[i] = -(what == Doing::landing);
      lane(masks.sliding)[i] = -(what == Doing::sliding);
    }
    return what != Doing::done;
  }

  // Go on to something with another field or clock, in a step that suits it.
  void turn(int i, Doing what) {
    const Doing was = doing[i];
    if (!begin(i, what)) return record(i, y[2].lane()[i]), fill(i);
    T &length = step.lane()[i];
    length = doing[i] == Doing::landing ? left.lane()[i] : std::max(length, first);
    if (was != Doing::watching || doing[i] != Doing::free) lane(changed)[i] = -1;
  }

  void begin_anew() {
    Pack<T> fresh[3];
    field(y, masks, fresh);
    for (int c = 0; c < 3; ++c) rate[0][c] = select(changed, fresh[c], rate[0][c]);
    changed = Mask<T>{};
  }

  INLINE void advance() {
    const Pack<T> tried = smaller(step, left);
    Pack<T> at[3];
    stages<M>(field, y, masks, tried, rate, at, std::make_integer_sequence<int, M::stages>());
    const Pack<T> off = error<M>(rate, tried, at[2], work.rtol);
    step = tried * growth<M>(off);
    Mask<T> accepted = off <= 1;
    if constexpr (F::walled) accepted = meet_wall(accepted, at);
    for (int c = 0; c < 3; ++c) {
      y[c] = select(accepted, at[c], y[c]);
      rate[0][c] = select(accepted, rate[M::stages][c], rate[0][c]);
    }
    left = select(accepted, left - tried, left);
  }

  // Lanes that a step would take outside go back to its beginning, and land.
  INLINE Mask<T> meet_wall(Mask<T> accepted, const Pack<T> *at) {
    Mask<T> hit = accepted & masks.watching & field.outside(at);
    if (any(hit))
      for (int i = 0; i < lanes; ++i)
        if (lane(hit)[i]) turn(i, Doing::landing);
    return accepted & ~hit;
  }

  void arrive() {
    for (int i = 0; i < lanes; ++i)
      if (!(left.lane()[i] > 0) && start[i] != NONE) turn(i, F::after(doing[i]));
  }

  void give_up() {
    for (int i = 0; i < lanes; ++i)
      if (start[i] != NONE && now - born[i] > MOST_TRIES)
        record(i, std::numeric_limits<T>::quiet_NaN()), fill(i);
  }

  void run() {
    busy = lanes;
    for (int i = 0; i < lanes; ++i) fill(i);
    while (busy > 0) {
      ++now;
      advance();
      if (any(left <= 0)) arrive();
      if constexpr (F::walled)
        if (any(changed)) begin_anew();
      if (now % 1024 == 0) give_up();
    }
  }
};

// ---- Entry -------------------------------------------------------------------------------------

template <class M, class F, class T> void on_all(Parameters p, Work<T> &work, int threads) {
  const auto part = [&] { Worker<M, F, T>{{p}, work}.run(); };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(part);
  part();
  for (auto &other : others) other.join();
}

#if PROBLEM == 0
template <class T> using Field = Ratio<T>;
#elif PROBLEM == 1
template <class T> using Field = Kernel<T>;
#elif PROBLEM == 2
template <class T> using Field = Box<T>;
#else
template <class T> using Field = Simplex<T>;
#endif

}  // namespace

// Times and tries of each start: (x_chosen, x_rejected), or u under a kernel.
extern "C" void solve(const double *p, double rtol, const REAL *starts, long count, int threads,
                      REAL *times, int *tries) {
  Work<REAL> work{starts, count, rtol, times, tries};
  on_all<METHOD, Field<REAL>>(Parameters{p[0], p[1], p[2], p[3], p[4]}, work, threads);
}
