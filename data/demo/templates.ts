import type { Draw, Working } from './draft.ts';
import { CONTAINERS } from './words.ts';

/** Writes the question and works it out; the last step's result is the answer. */
export type Template = (draw: Draw, working: Working) => string;

/**
 * The kinds of problems, each with steps of its own. The name is part of a problem's skeleton: renaming one moves its
 * problems between splits, so the files made from it must be made again.
 */
export const TEMPLATES: Readonly<Record<string, Template>> = {
  // Shopping
  buyPacksGiveAway: (draw, working) => {
    const [{ name, pronoun }] = draw.people(1);
    const [item] = draw.items(1);
    const [have, packs, each, given] = [draw.int(5, 40), draw.int(2, 9), draw.int(2, 12), draw.int(2, 20)];
    working.subtract(working.add(have, working.multiply(packs, each)), given);
    return (
      `${name} has ${have} ${item}. ${pronoun} buys ${packs} ${draw.pick(CONTAINERS)} of ${each} ${item} and ` +
      `gives away ${given}. How many ${item} does ${name} have now?`
    );
  },
  changeFromBill: (draw, working) => {
    const [{ name, pronoun }] = draw.people(1);
    const [first, second] = draw.items(2);
    const [count, price, others, otherPrice] = [draw.int(2, 9), draw.int(2, 9), draw.int(2, 9), draw.int(2, 9)];
    const paid = draw.multiple(50, 50, 200);
    const left = working.multiply(count, price);
    working.subtract(paid, working.add(left, working.multiply(others, otherPrice)));
    return (
      `${name} buys ${count} ${first} at ${price} dollars each and ${others} ${second} at ${otherPrice} dollars ` +
      `each. ${pronoun} pays with ${paid} dollars. How many dollars does ${name} get back?`
    );
  },
  setsWithDiscount: (draw, working) => {
    const [{ name }] = draw.people(1);
    const [coat, hat, sets, off] = [draw.int(10, 40), draw.int(3, 20), draw.int(2, 5), draw.int(5, 30)];
    working.subtract(working.multiply(working.add(coat, hat), sets), off);
    return (
      `A coat costs ${coat} dollars and a hat costs ${hat} dollars. ${name} buys ${sets} of each and gets ${off} ` +
      `dollars off. How many dollars does ${name} pay?`
    );
  },
  tickets: (draw, working) => {
    const [adult, kid, adults, kids] = [draw.int(6, 15), draw.int(2, 9), draw.int(2, 6), draw.int(2, 9)];
    const paid = working.multiply(adults, adult);
    working.add(paid, working.multiply(kids, kid));
    return (
      `A ticket costs ${adult} dollars for adults and ${kid} dollars for kids. How many dollars do ${adults} ` +
      `adults and ${kids} kids pay?`
    );
  },
  sellAndEarn: (draw, working) => {
    const [{ name }] = draw.people(1);
    const [item] = draw.items(1);
    const [made, kept, price] = [draw.int(10, 60), draw.int(2, 50), draw.int(2, 6)];
    working.multiply(working.subtract(made, kept), price);
    return (
      `${name} makes ${made} ${item}, keeps ${kept} and sells the rest at ${price} dollars each. How many ` +
      `dollars does ${name} earn?`
    );
  },

  // Travel
  twoLegs: (draw, working) => {
    const vehicle = draw.pick(['bus', 'train', 'truck', 'car']);
    const [speed, hours] = [draw.multiple(10, 20, 90), draw.int(2, 5)];
    const [otherSpeed, otherHours] = [draw.multiple(10, 20, 90), draw.int(2, 5)];
    const first = working.multiply(speed, hours);
    working.add(first, working.multiply(otherSpeed, otherHours));
    return (
      `A ${vehicle} drives ${speed} km an hour for ${hours} hours and then ${otherSpeed} km an hour for ` +
      `${otherHours} hours. How many km does it drive?`
    );
  },
  roadLeft: (draw, working) => {
    const [{ name }] = draw.people(1);
    const [road, speed, hours, more] = [draw.multiple(10, 60, 200), draw.int(6, 20), draw.int(2, 5), draw.int(2, 30)];
    const ridden = working.multiply(speed, hours);
    working.subtract(road, working.add(ridden, more));
    return (
      `A road is ${road} km long. ${name} rides ${speed} km an hour for ${hours} hours and then walks ${more} ` +
      'km. How many km are left?'
    );
  },
  busStops: (draw, working) => {
    const vehicle = draw.pick(['bus', 'train', 'boat']);
    const [start, off, on, offLater] = [draw.int(20, 60), draw.int(3, 19), draw.int(3, 30), draw.int(3, 30)];
    working.subtract(working.add(working.subtract(start, off), on), offLater);
    return (
      `A ${vehicle} has ${start} people. At the first stop ${off} get off and ${on} get on. At the next stop ` +
      `${offLater} get off. How many people are left?`
    );
  },
  training: (draw, working) => {
    const [{ name, pronoun }] = draw.people(1);
    const [km, days, weeks, race] = [draw.int(2, 9), draw.int(2, 6), draw.int(2, 5), draw.int(5, 40)];
    working.add(working.multiply(working.multiply(km, days), weeks), race);
    return (
      `${name} runs ${km} km a day, ${days} days a week, for ${weeks} weeks. ${pronoun} then runs a race of ` +
      `${race} km. How many km does ${name} run?`
    );
  },

  // Cooking
  cakesAndPies: (draw, working) => {
    const [{ name }] = draw.people(1);
    const [perCake, perPie, cakes, pies] = [draw.int(2, 6), draw.int(2, 6), draw.int(2, 9), draw.int(2, 9)];
    const first = working.multiply(cakes, perCake);
    working.add(first, working.multiply(pies, perPie));
    return (
      `A cake takes ${perCake} eggs and a pie takes ${perPie} eggs. ${name} bakes ${cakes} cakes and ${pies} ` +
      `pies. How many eggs does ${name} need?`
    );
  },
  eggsLeft: (draw, working) => {
    const [{ name, pronoun }] = draw.people(1);
    const dish = draw.pick(['cake', 'pie', 'soup']);
    const [have, each, count, bought] = [draw.int(20, 60), draw.int(2, 6), draw.int(2, 9), draw.int(3, 24)];
    working.add(working.subtract(have, working.multiply(count, each)), bought);
    return (
      `${name} has ${have} eggs. ${pronoun} bakes ${count} ${dish}s with ${each} eggs each and then buys ` +
      `${bought} eggs. How many eggs does ${name} have now?`
    );
  },
  recipeForMore: (draw, working) => {
    const [{ name }] = draw.people(1);
    const [serves, perServing, people] = [draw.int(2, 6), draw.int(2, 9), draw.int(2, 9)];
    const recipe = serves * perServing;
    working.multiply(working.divide(recipe, serves), people);
    return (
      `A soup for ${serves} people takes ${recipe} carrots. How many carrots does ${name} need for ${people} ` +
      'people?'
    );
  },

  // Ages
  ageChain: (draw, working) => {
    const [a, b, c] = draw.people(3);
    const [age, older, times] = [draw.int(3, 30), draw.int(2, 15), draw.int(2, 3)];
    working.multiply(working.add(age, older), times);
    return (
      `${a.name} is ${age} years old. ${b.name} is ${older} years older than ${a.name}. ${c.name} is ${times} ` +
      `times as old as ${b.name}. How old is ${c.name}?`
    );
  },
  agesTogether: (draw, working) => {
    const [a, b] = draw.people(2);
    const [age, younger, years] = [draw.int(12, 50), draw.int(2, 10), draw.int(2, 20)];
    const other = working.add(working.subtract(age, younger), years);
    working.add(working.add(age, years), other);
    return (
      `${a.name} is ${age} years old and ${b.name} is ${younger} years younger. How old will they be together in ` +
      `${years} years?`
    );
  },
  ageLongAgo: (draw, working) => {
    const [a, b] = draw.people(2);
    const [times, old, ago] = [draw.int(2, 4), draw.int(6, 20), draw.int(2, 15)];
    working.subtract(working.multiply(old, times), ago);
    return (
      `${a.name} is ${old} years old. ${b.name} is ${times} times as old as ${a.name}. How old was ${b.name} ` +
      `${ago} years ago?`
    );
  },

  // Sharing
  poolAndShare: (draw, working) => {
    const [a, b] = draw.people(2);
    const [item] = draw.items(1);
    const [friends, each, mine, lost] = [draw.int(2, 9), draw.int(3, 12), draw.int(2, 50), draw.int(1, 8)];
    const others = friends * each - mine;
    working.subtract(working.divide(working.add(mine, others), friends), lost);
    return (
      `${a.name} has ${mine} ${item} and ${b.name} has ${others}. They share them equally among ${friends} kids. ` +
      `Each kid then loses ${lost}. How many ${item} does each kid have now?`
    );
  },
  shareContainers: (draw, working) => {
    const [item] = draw.items(1);
    const [kids, packs, share] = [draw.int(2, 9), draw.int(2, 9), draw.int(1, 4)];
    const each = kids * share;
    working.divide(working.multiply(packs, each), kids);
    return (
      `${packs} ${draw.pick(CONTAINERS)} of ${each} ${item} are shared among ${kids} kids. How many ${item} does ` +
      'each kid get?'
    );
  },
  giveHalf: (draw, working) => {
    const [a, b] = draw.people(2);
    const [item] = draw.items(1);
    const [half, found, lost] = [draw.int(4, 45), draw.int(3, 30), draw.int(2, 20)];
    working.subtract(working.add(working.divide(half * 2, 2), found), lost);
    return (
      `${a.name} has ${half * 2} ${item} and gives half to ${b.name}. ${a.name} then finds ${found} and loses ` +
      `${lost}. How many ${item} does ${a.name} have now?`
    );
  },
  groupsOfStudents: (draw, working) => {
    const [size, groups, perClass, classes] = [draw.int(2, 9), draw.int(2, 9), draw.int(6, 20), draw.int(2, 5)];
    const sick = classes * perClass - size * groups;
    working.divide(working.subtract(working.multiply(classes, perClass), sick), size);
    return (
      `There are ${classes} classes of ${perClass} kids. ${sick} kids are sick and the rest form groups of ` +
      `${size}. How many groups are there?`
    );
  },
  cutRope: (draw, working) => {
    const [{ name }] = draw.people(1);
    const [pieces, length, people, share] = [draw.int(2, 6), draw.int(2, 9), draw.int(2, 6), draw.int(2, 9)];
    const rope = pieces * length + people * share;
    working.divide(working.subtract(rope, working.multiply(pieces, length)), people);
    return (
      `A rope is ${rope} m long. ${name} cuts off ${pieces} pieces of ${length} m and shares the rest among ` +
      `${people} friends. How many m does each friend get?`
    );
  },

  // Rates
  machine: (draw, working) => {
    const [item] = draw.items(1);
    const [rate, hours, days, broken] = [draw.int(2, 9), draw.int(2, 9), draw.int(2, 5), draw.int(2, 20)];
    working.subtract(working.multiply(working.multiply(rate, hours), days), broken);
    return (
      `A machine makes ${rate} ${item} an hour and runs ${hours} hours a day for ${days} days. ${broken} ${item} ` +
      `are broken. How many good ${item} are there?`
    );
  },
  wages: (draw, working) => {
    const [{ name, pronoun }] = draw.people(1);
    const [wage, hours, spent, gift] = [draw.int(6, 15), draw.int(3, 9), draw.int(5, 50), draw.int(5, 30)];
    working.add(working.subtract(working.multiply(wage, hours), spent), gift);
    return (
      `${name} earns ${wage} dollars an hour and works ${hours} hours. ${pronoun} spends ${spent} dollars and ` +
      `gets ${gift} dollars as a gift. How many dollars does ${name} have now?`
    );
  },
  savings: (draw, working) => {
    const [{ name, pronoun }] = draw.people(1);
    const thing = draw.pick(['bike', 'coat', 'radio']);
    const [price, had, weekly, weeks] = [draw.multiple(10, 60, 200), draw.int(5, 40), draw.int(3, 12), draw.int(2, 9)];
    working.subtract(price, working.add(had, working.multiply(weeks, weekly)));
    return (
      `A ${thing} costs ${price} dollars. ${name} has ${had} dollars and saves ${weekly} dollars a week for ` +
      `${weeks} weeks. How many more dollars does ${pronoun.toLowerCase()} need?`
    );
  },
  tank: (draw, working) => {
    const [start, rate, minutes, leak] = [draw.int(10, 90), draw.int(3, 12), draw.int(2, 9), draw.int(5, 30)];
    working.subtract(working.add(start, working.multiply(rate, minutes)), leak);
    return (
      `A tank holds ${start} liters. A pump adds ${rate} liters a minute for ${minutes} minutes and then ${leak} ` +
      'liters leak out. How many liters are left?'
    );
  },
  pagesLeft: (draw, working) => {
    const [{ name }] = draw.people(1);
    const [pages, daily, days, more] = [draw.int(60, 200), draw.int(5, 15), draw.int(2, 7), draw.int(3, 30)];
    working.subtract(working.subtract(pages, working.multiply(daily, days)), more);
    return (
      `A book has ${pages} pages. ${name} reads ${daily} pages a day for ${days} days and then ${more} more. How ` +
      'many pages are left?'
    );
  },

  // Comparing and counting
  timesAsMany: (draw, working) => {
    const [a, b, c] = draw.people(3);
    const [item] = draw.items(1);
    const [have, times, fewer] = [draw.int(3, 20), draw.int(2, 4), draw.int(2, 15)];
    const second = working.multiply(have, times);
    const third = working.subtract(second, fewer);
    working.add(working.add(have, second), third);
    return (
      `${a.name} has ${have} ${item}. ${b.name} has ${times} times as many as ${a.name}. ${c.name} has ${fewer} ` +
      `fewer than ${b.name}. How many ${item} do they have together?`
    );
  },
  threeDays: (draw, working) => {
    const [{ name }] = draw.people(1);
    const [item] = draw.items(1);
    const [first, more, fewer] = [draw.int(8, 40), draw.int(3, 25), draw.int(2, 15)];
    const second = working.add(first, more);
    const third = working.subtract(second, fewer);
    working.add(working.add(first, second), third);
    return (
      `On Monday ${name} sells ${first} ${item}, on Tuesday ${more} more than on Monday and on Friday ${fewer} ` +
      `fewer than on Tuesday. How many ${item} does ${name} sell?`
    );
  },
  howManyMore: (draw, working) => {
    const [a, b] = draw.people(2);
    const [item] = draw.items(1);
    const [packs, each, others, othersEach] = [draw.int(3, 9), draw.int(4, 12), draw.int(2, 6), draw.int(2, 9)];
    const container = draw.pick(CONTAINERS);
    const first = working.multiply(packs, each);
    working.subtract(first, working.multiply(others, othersEach));
    return (
      `${a.name} has ${packs} ${container} of ${each} ${item}. ${b.name} has ${others} ${container} of ` +
      `${othersEach} ${item}. How many more ${item} does ${a.name} have than ${b.name}?`
    );
  },
  legs: (draw, working) => {
    const [cows, hens, more] = [draw.int(2, 12), draw.int(2, 25), draw.int(2, 9)];
    const first = working.multiply(cows, 4);
    working.add(first, working.multiply(working.add(hens, more), 2));
    return (
      `A farm has ${cows} cows and ${hens} hens. The farm buys ${more} more hens. How many legs do the cows and ` +
      'hens have?'
    );
  },
  orchard: (draw, working) => {
    const [rows, each, dead, planted] = [draw.int(3, 9), draw.int(4, 12), draw.int(2, 20), draw.int(3, 30)];
    const tree = draw.pick(['trees', 'roses', 'bushes']);
    working.add(working.subtract(working.multiply(rows, each), dead), planted);
    return (
      `A garden has ${rows} rows of ${each} ${tree}. ${dead} ${tree} die and ${planted} new ones are planted. ` +
      `How many ${tree} are there now?`
    );
  },
  fullBoxes: (draw, working) => {
    const [item] = draw.items(1);
    const [empty, count, each, boxes] = [draw.int(2, 9), draw.int(2, 9), draw.int(2, 6), draw.int(2, 5)];
    working.multiply(working.add(empty, working.multiply(count, each)), boxes);
    return (
      `A box weighs ${empty} kg and holds ${count} ${item} of ${each} kg each. How many kg do ${boxes} full ` +
      'boxes weigh?'
    );
  },
  meanScore: (draw, working) => {
    const [{ name }] = draw.people(1);
    const [mean, first, second] = [draw.int(5, 30), draw.int(3, 35), draw.int(3, 35)];
    const third = mean * 3 - first - second;
    working.divide(working.add(working.add(first, second), third), 3);
    return `${name} scores ${first}, ${second} and ${third} points in 3 games. What is the mean score?`;
  },
};
