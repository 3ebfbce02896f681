// Everything that is said on the page, in Russian and in English; and how times and sums are written.

const RU = {
  title: "Вестник", account: "Личный кабинет", skip: "К содержанию", language: "English", leave: "Выйти",
  nav: "Разделы кабинета", applications: "Мои обращения", sections: "Разделы", feed: "События", history: "История", devices: "Устройства",
  taxes: "Налоги", pension: "Пенсия", traffic: "ГИБДД", documents: "Документы", other: "Другое",
  signIn: "Вход", signInText: "Выберите человека из примера или вставьте токен для разработки.", signInToken: "Вставьте токен для разработки: его печатает команда",
  samples: "Люди из примера", token: "Токен", enter: "Войти", tokenEmpty: "Вставьте токен: строку из трёх частей через точку.",
  tokenWrong: "Это не токен: в нём должно быть три части через точку.",
  live: "На связи", connecting: "Подключаемся", "catching-up": "Получаем пропущенное",
  waiting: "Связи нет", offline: "Нет сети", stopped: "Связь закрыта",
  offlineText: "Вы видите сохранённое на этом устройстве. Пропущенное придёт само, по порядку и без потерь, как только сеть вернётся.",
  waitingText: "Вы видите сохранённое на этом устройстве. Кабинет подключится сам.", retry: "Подключиться сейчас",
  again: (s) => `Следующая попытка через ${s} с.`,
  awayTitle: "Шлюз не отвечает", awayText: "Сведения ещё не загружены. Кабинет подключится сам, как только шлюз ответит.",
  loading: "Загружаем сведения…",
  4401: ["Вход не удался", "Токен неверный или его срок закончился. Войдите ещё раз."],
  4403: ["Вход не разрешён", "Токен не подходит этому устройству, или устройств уже десять. Завершите сеанс на другом устройстве и попробуйте снова."],
  4409: ["Кабинет открыт в другом месте", "Это же устройство подключилось ещё раз. Продолжить можно здесь."],
  4410: ["Сеанс завершён", "Его завершили с другого устройства или из службы входа. Войдите ещё раз."],
  4426: ["Страница устарела", "Загрузите её заново, чтобы получить новую версию."],
  else: ["Связь закрыта", "Шлюз попросил не подключаться снова. Загрузите страницу заново или войдите ещё раз."],
  signInAgain: "Войти заново", here: "Продолжить здесь", reload: "Загрузить заново",
  noApplications: ["Обращений пока нет", "Как только ведомство начнёт рассматривать ваше заявление, оно появится здесь."],
  noItems: ["Здесь пока пусто", "Ведомство ещё ничего не сообщило. Новые сведения появятся сами."],
  noEvents: ["Событий пока нет", "Всё, что сообщат ведомства, появится здесь сразу."],
  noHistory: ["Ничего не найдено", "Измените условия или сбросьте их."],
  updated: "Обновлено", lastUpdate: "Последние сведения от ведомства", nextUpdate: "Следующие ожидаются", deadline: "Срок", number: "№", asOf: "По состоянию на", previously: "Было",
  refresh: "Обновить данные", refreshOf: (name) => `Обновить данные: ${name}`,
  refreshAsked: "Спрашиваем ведомство…", accepted: "Ведомство ответит, сведения появятся сами.", done: "Данные обновлены.",
  failed: "Не удалось обновить: попробуйте позже.", unsupported: "Ведомство присылает изменения само; по запросу пока не отвечает.",
  cooldown: (s) => `Уже спрашивали. Повторить можно через ${s} с.`, noLink: "Связи нет: спросим ведомство, как только она появится.",
  notices: "Объявления ведомств", nobody: "никого не выбрано", noticesText: "Что публикует отмеченное ведомство, приходит сюда вместе с вашими событиями.",
  followed: (name) => `Вы следите за объявлениями: ${name}.`, unfollowed: (name) => `Объявления больше не приходят: ${name}.`, tooMany: "Больше ведомств выбрать нельзя.",
  unread: "Непрочитанное", readAll: "Прочитать всё", newOnes: (n) => `Новых: ${n}`, erased: "Сведения удалены", allRead: "Всё прочитано",
  whose: "Лента", mine: "Мои события", type: "Что", status: "Статус", from: "С", to: "По", any: "Любое", anyStatus: "Любой", apply: "Показать", reset: "Сбросить", more: "Показать ещё", csv: "Скачать CSV",
  historyNeeds: "История хранится на шлюзе, а связи с ним нет. Попробуйте, когда она появится.",
  thisDevice: "это устройство", connected: "на связи", lastSeen: "Был на связи", since: "Подключено", end: "Завершить сеанс", endOf: (name) => `Завершить сеанс: ${name}`,
  endAll: "Завершить все сеансы", endAllText: "Все устройства, и это тоже, должны будут войти заново.", ended: "Сеанс завершён.", browser: "Браузер",
  devicesText: "Здесь все устройства, которые получают ваши события. Не узнаёте какое-то? Завершите его сеанс.",
  leads: "Эта вкладка держит соединение для всех вкладок.", follows: "Соединение держит другая вкладка этого браузера.",
  tabs: "Вкладки", fines: "Штраф", payouts: "Выплата",
  statuses: {
    processing: "В обработке", checking: "На проверке", awaiting_confirmation: "Ожидание подтверждения", action_required: "Требуется действие",
    approved: "Одобрено", rejected: "Отклонено", done: "Готово", cancelled: "Отменено",
    issued: "Не оплачен", changed: "Изменено", overdue: "Просрочен", paid: "Оплачено",
    assigned: "Назначено", scheduled: "Запланировано", delayed: "Задерживается", stopped: "Прекращено",
  },
  payoutStatuses: { paid: "Выплачено" },
  types: {
    "gov.status.changed": "Статус заявления", "gov.record.changed": "Сведения изменены", "gov.notice.sent": "Уведомление", "gov.fine.changed": "Штраф",
    "gov.payout.changed": "Пенсия или выплата", "gov.court.decided": "Судебное решение", "gov.code.sent": "Код подтверждения",
    "gov.notice.published": "Объявление ведомства", "gov.emergency.published": "Чрезвычайная ситуация", "gov.news.published": "Новости услуг", "gov.erased": "Сведения удалены",
  },
  agencies: { fns: "ФНС", sfr: "СФР", gibdd: "ГИБДД", mvd: "МВД", court: "Мировой суд", mchs: "МЧС" },
  registries: { taxes: "Налог", vehicle: "Автомобиль", documents: "Документ", transport: "транспортный", land: "земельный", property: "на имущество", passport: "паспорт" },
};

const EN = {
  title: "Vestnik", account: "My account", skip: "Skip to content", language: "Русский", leave: "Sign out",
  nav: "Parts of the account", applications: "My applications", sections: "Sections", feed: "Events", history: "History", devices: "Devices",
  taxes: "Taxes", pension: "Pension", traffic: "Traffic police", documents: "Documents", other: "Other",
  signIn: "Sign in", signInText: "Choose a sample person, or paste a development token.", signInToken: "Paste a development token, as printed by",
  samples: "Sample people", token: "Token", enter: "Sign in", tokenEmpty: "Paste a token: a line of three parts with dots between them.",
  tokenWrong: "This is no token: it must have three parts with dots between them.",
  live: "Connected", connecting: "Connecting", "catching-up": "Receiving what was missed",
  waiting: "No connection", offline: "Offline", stopped: "Disconnected",
  offlineText: "You see what is kept on this device. What you miss will come by itself, in order and complete, when the network is back.",
  waitingText: "You see what is kept on this device. The page will connect by itself.", retry: "Connect now",
  again: (s) => `Next try in ${s} s.`,
  awayTitle: "The gateway does not answer", awayText: "Nothing is loaded yet. The page will connect by itself as soon as the gateway answers.",
  loading: "Loading…",
  4401: ["Sign-in failed", "The token is wrong or has ended. Please sign in again."],
  4403: ["Sign-in is not allowed", "The token does not fit this device, or there are ten devices already. End the session of another device and try again."],
  4409: ["The account is open elsewhere", "This same device connected once more. You can continue here."],
  4410: ["The session was ended", "It was ended from another device or by the sign-in service. Please sign in again."],
  4426: ["This page is out of date", "Load it again to get the new version."],
  else: ["Disconnected", "The gateway asked not to connect again. Load the page again, or sign in again."],
  signInAgain: "Sign in again", here: "Continue here", reload: "Load again",
  noApplications: ["No applications yet", "As soon as an agency starts to work on one, it will appear here."],
  noItems: ["Nothing here yet", "The agency has not told anything so far. News will appear by itself."],
  noEvents: ["No events yet", "Whatever the agencies tell will appear here at once."],
  noHistory: ["Nothing found", "Change the conditions, or reset them."],
  updated: "Updated", lastUpdate: "Last heard from the agency", nextUpdate: "Next expected", deadline: "Deadline", number: "No.", asOf: "As of", previously: "Before",
  refresh: "Refresh data", refreshOf: (name) => `Refresh data: ${name}`,
  refreshAsked: "Asking the agency…", accepted: "The agency will answer; news will appear by itself.", done: "The data are up to date.",
  failed: "Could not refresh: try again later.", unsupported: "The agency sends changes by itself; it does not answer requests yet.",
  cooldown: (s) => `Asked already. You can repeat it in ${s} s.`, noLink: "No connection: the agency will be asked as soon as it is back.",
  notices: "Agency notices", nobody: "none chosen", noticesText: "What a chosen agency publishes comes here, among your own events.",
  followed: (name) => `You follow the notices of: ${name}.`, unfollowed: (name) => `No more notices of: ${name}.`, tooMany: "No more agencies can be chosen.",
  unread: "Unread", readAll: "Mark all as read", newOnes: (n) => `New: ${n}`, erased: "Erased", allRead: "All read",
  whose: "Feed", mine: "My events", type: "What", status: "Status", from: "From", to: "To", any: "Any", anyStatus: "Any", apply: "Show", reset: "Reset", more: "Show more", csv: "Download CSV",
  historyNeeds: "The history is kept by the gateway, and there is no connection to it. Try again when it is back.",
  thisDevice: "this device", connected: "connected", lastSeen: "Last seen", since: "Since", end: "End session", endOf: (name) => `End session: ${name}`,
  endAll: "End all sessions", endAllText: "Every device, this one too, will have to sign in again.", ended: "The session was ended.", browser: "Browser",
  devicesText: "All devices that receive your events. Is there one that you do not know? End its session.",
  leads: "This tab holds the connection for all tabs.", follows: "Another tab of this browser holds the connection.",
  tabs: "Tabs", fines: "Fine", payouts: "Payout",
  statuses: {
    processing: "Processing", checking: "Checking", awaiting_confirmation: "Awaiting confirmation", action_required: "Action required",
    approved: "Approved", rejected: "Rejected", done: "Done", cancelled: "Cancelled",
    issued: "Unpaid", changed: "Changed", overdue: "Overdue", paid: "Paid",
    assigned: "Assigned", scheduled: "Scheduled", delayed: "Delayed", stopped: "Stopped",
  },
  payoutStatuses: {},
  types: {
    "gov.status.changed": "Application status", "gov.record.changed": "Record changed", "gov.notice.sent": "Notice", "gov.fine.changed": "Fine",
    "gov.payout.changed": "Pension or payout", "gov.court.decided": "Court decision", "gov.code.sent": "One-time code",
    "gov.notice.published": "Public notice", "gov.emergency.published": "Emergency", "gov.news.published": "News of services", "gov.erased": "Erased",
  },
  agencies: { fns: "Tax service", sfr: "Social fund", gibdd: "Traffic police", mvd: "Interior ministry", court: "Magistrates' court", mchs: "Emergency ministry" },
  registries: { taxes: "Tax", vehicle: "Vehicle", documents: "Document", transport: "transport", land: "land", property: "property", passport: "passport" },
};

const BOTH = { ru: RU, en: EN };

export let language = localStorage.getItem("language") ?? (navigator.languages.some((one) => one.startsWith("ru")) ? "ru" : "en");
export let words = BOTH[language] ?? RU;

export function switchLanguage() {
  language = language === "ru" ? "en" : "ru";
  localStorage.setItem("language", language);
  words = BOTH[language];
}

export const agencyName = (code) => words.agencies[code] ?? code;
export const statusName = (status, type) => (type === "gov.payout.changed" && words.payoutStatuses[status]) || (words.statuses[status] ?? status);

export function roubles(kopecks) {
  return new Intl.NumberFormat(language, { style: "currency", currency: "RUB" }).format(kopecks / 100);
}

/** A day, or a moment with its day when it was not today. */
export function moment(text) {
  const when = new Date(text);
  if (Number.isNaN(when.getTime())) return text;
  if (/^\d{4}-\d\d-\d\d$/.test(text)) return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeZone: "UTC" }).format(when);
  const today = when.toDateString() === new Date().toDateString();
  return new Intl.DateTimeFormat(language, today ? { hour: "2-digit", minute: "2-digit", second: "2-digit" } : { dateStyle: "medium", timeStyle: "short" }).format(when);
}

/** Only the day of a moment. */
export function day(text) {
  const when = new Date(text);
  return Number.isNaN(when.getTime()) ? text : new Intl.DateTimeFormat(language, { day: "numeric", month: "long" }).format(when);
}
